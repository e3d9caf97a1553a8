"""Calls of reward functions, of all who ask at once: a thread gives them to the processes, and reads what they answer.

A job is what one caller asks for. Processes work on the calls of all jobs: one that is idle takes the next call of the
job that occupies the fewest, of these the one that came first. So what is slow or fails holds up others by no more than
the processes that it occupies. Only the thread touches the processes once it has begun.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING

from ft_host.errors import FtHostError
from ft_host.rewards.functions import RewardFunction, counted
from ft_host.rewards.jobs import Call, Found, Job, Turn
from ft_host.rewards.process import Worker
from ft_host.rewards.sending import not_picklable, part_of
from ft_host.util.imports import cause

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig

LOADING = 120.0  # seconds to start a process and import a function; not part of a call's time
CLOSED = "the rewards of this run are closed: it ends"


class Calls:
    """The calls of a pool's `functions`, which `specs` name. `submit`, `give_up` and `close` are called from any
    thread."""

    def __init__(self, specs: list[str], config: RolloutConfig, option: str, folder: str, *, waits_again: bool):
        self.specs, self.config, self.option, self.folder = specs, config, option, folder
        self.waits_again = waits_again
        self.functions: list[RewardFunction] = []
        self.workers: list[Worker] = []
        self.started = 0
        self.in_a_row: dict[str, int] = {}  # failed completions since the last one that was scored, by function
        self.jobs: list[Job] = []  # as they came
        self.busy: dict[Worker, Turn] = {}
        self.stopped = False
        self.lock = threading.Lock()  # of what follows
        self.commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self.thread: threading.Thread | None = None
        self.wake: tuple[Connection, Connection] | None = None  # what the thread reads, and what it is woken with
        self.closed: str = ""  # why nothing more is called

    # ------------------------------------------------------------ any thread

    def start(self) -> Worker:
        """Start a process. Called before there is a thread, and by it."""
        self.started += 1
        self.workers.append(Worker(self.started, self.folder))
        return self.workers[-1]

    def submit(self, job: Job) -> None:
        """Make the calls of a job. Raises FtHostError after `close`."""
        if not self._in_thread(lambda: self.jobs.append(job)):
            raise FtHostError(self.closed)

    def give_up(self, job: Job) -> None:
        """End a job if it still goes on, with the processes that work for it: all of them, if no other is left."""
        self._in_thread(lambda: self._drop(job))

    def close(self) -> None:
        """End all processes. What waits for a job gets an error."""
        with self.lock:
            thread = self.thread
            if thread is not None and not self.closed:
                self._command(self._stop)
            self.closed = self.closed or CLOSED
        if thread is None:
            self._end_all()
        else:
            thread.join()

    def _in_thread(self, do: Callable[[], None]) -> bool:
        """Have the thread do something, and wait until it has. Returns False after `close`."""
        with self.lock:
            if self.closed:
                return False
            if self.thread is None:
                self.wake = Pipe(duplex=False)
                self.thread = threading.Thread(target=self._work, args=self.wake, name="rewards", daemon=True)
                self.thread.start()
            done = self._command(do)
        done.result()
        return True

    def _command(self, do: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        self.commands.append((do, done))
        if len(self.commands) == 1 and self.wake is not None:
            self.wake[1].send_bytes(b".")
        return done

    # ------------------------------------------------------------ the thread

    def _work(self, heard: Connection, woken: Connection) -> None:
        try:
            while not self.stopped:
                self._hand_out()
                soonest = min((turn.deadline for turn in self.busy.values()), default=None)
                patience = None if soonest is None else max(0.0, soonest - time.monotonic())
                ready = wait([heard, *[worker.connection for worker in self.busy]], patience)
                if heard in ready:
                    self._obey(heard)
                for worker, turn in list(self.busy.items()):
                    if self.busy.get(worker) is turn:  # not ended meanwhile
                        self._look_at(worker, turn, worker.connection in ready)
        except BaseException as error:
            self.closed = f"the thread that calls rewards has failed: {cause(error)}"
            raise
        finally:
            with self.lock:
                self.closed = self.closed or CLOSED
                self._stop()
                while self.commands:
                    self.commands.popleft()[1].set_exception(FtHostError(self.closed))
                heard.close()
                woken.close()

    def _obey(self, heard: Connection) -> None:
        heard.recv_bytes()
        while True:
            with self.lock:
                if not self.commands:
                    return
                do, done = self.commands.popleft()
            try:
                do()
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)

    def _look_at(self, worker: Worker, turn: Turn, has_sent: bool) -> None:
        """Take what a worker has sent, or see whether it is late."""
        if has_sent:
            kind, *payload = worker.receive()
        elif turn.deadline <= time.monotonic():
            kind, payload = "late", [turn.late]
        else:
            return
        job, call = turn.job, turn.call
        if kind == "began":
            limit = self.config.reward_timeout
            self.busy[worker] = Turn(job, call, time.monotonic() + limit, f"took longer than {limit:g} s")
            return
        self._free(worker)
        function, its = self.functions[call.index], job.found[call.index]
        if kind == "done":
            *result, notes = payload
            job.notes += notes
            its.note(call, *result)
        elif kind == "late" and not self.waits_again:
            self._drop(job, FtHostError(f"{function} {payload[0]}"))
            return
        else:
            if kind == "died":
                job.notes.append(f"{function}: {payload[0]}; another one takes its place")
            if kind != "failed" or call.sample is None:
                self._end(worker)
            if call.sample is None:
                samples = range(len(job.scoring.completions))
                job.waiting += [Call(call.index, sample, after=self.started) for sample in samples]
            else:
                its.rewards[call.sample], its.reasons[call.sample] = None, payload[0]
        problem = self._too_many_failures(function, its)
        if problem:
            self._drop(job, FtHostError(problem))
        elif not job.waiting and not job.busy:
            self.jobs.remove(job)
            job.done.set_result(None)

    def _hand_out(self) -> None:
        """Start as many calls as there are workers for."""
        while len(self.busy) < self.config.reward_workers:
            if not any(self._begin_one(job) for job in sorted(self.jobs, key=lambda job: job.busy)):
                return

    def _begin_one(self, job: Job) -> bool:
        """Start the first call of a job that there is a worker for. Returns whether anything has come of it."""
        for call in job.waiting:
            spec, function = self.specs[call.index], self.functions[call.index]
            worker = self._free_worker(job, call, spec)
            if worker is None:
                continue
            job.waiting.remove(call)
            part = part_of(function, job.scoring, call.sample)
            worker.loaded.add(spec)
            try:
                arguments, seed, limit = self.config.reward_kwargs, self.config.seed, self.config.reward_timeout
                worker.send("call", spec, self.option, arguments, seed, part, limit)
            except Exception as error:
                problem = not_picklable(function, part, error)
                problem.__cause__ = error
                self._drop(job, problem)
                return True
            job.busy += 1
            late = f"was not imported within {LOADING:g} s"
            self.busy[worker] = Turn(job, call, time.monotonic() + LOADING, late)
            return True
        return False

    def _free_worker(self, job: Job, call: Call, spec: str) -> Worker | None:
        """Return a worker for the call, preferably one that has imported the function's file. Start a new one if the
        limit allows.
        """
        for worker in [idle for idle in self.workers if idle not in self.busy and idle.process.poll() is not None]:
            # the system did it, or something that a function left running
            job.notes.append(
                f"a process that calls rewards is gone ({worker.how_ended()}); another one takes its place"
            )
            self._end(worker)
        idle = [worker for worker in self.workers if worker not in self.busy and worker.number > call.after]
        if idle:
            return max(idle, key=lambda worker: spec in worker.loaded)
        # After a failed call there is room for a new worker, since the one that made it is gone.
        return self.start() if len(self.workers) < self.config.reward_workers else None

    def _too_many_failures(self, function: RewardFunction, its: Found) -> str | None:
        """Count failures in a row, in the order of completions, across calls. Returns what is wrong if there are too
        many."""
        most = self.config.max_reward_failures
        while its.seen in its.rewards:
            reason = its.reasons.get(its.seen)
            its.seen += 1
            self.in_a_row[function.name] = self.in_a_row.get(function.name, 0) + 1 if reason else 0
            if self.in_a_row[function.name] > most:
                return (
                    f"{function} failed for {counted(most + 1, 'completion')} in a row (max_reward_failures: {most}), "
                    f"the last time: {reason}"
                )
        return None

    # ------------------------------------------------------------ ends

    def _drop(self, job: Job, error: BaseException | None = None) -> None:
        goes_on = job in self.jobs
        if goes_on:
            self.jobs.remove(job)
            for worker in [worker for worker, turn in self.busy.items() if turn.job is job]:
                self._free(worker)
                self._end(worker)
        if not self.jobs:  # also where the functions were done, and a reward model failed after them
            self._end_all()
        if goes_on:
            job.done.set_exception(error or FtHostError("the rewards were given up"))

    def _free(self, worker: Worker) -> None:
        self.busy.pop(worker).job.busy -= 1

    def _end(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.end()

    def _end_all(self) -> None:
        while self.workers:
            self.workers.pop().end()

    def _stop(self) -> None:
        self.stopped = True
        self._end_all()
        self.busy.clear()
        while self.jobs:
            self.jobs.pop().done.set_exception(FtHostError(self.closed))
