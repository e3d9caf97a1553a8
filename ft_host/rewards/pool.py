"""Reward functions in separate processes: if one raises, hangs or crashes, completions lose their reward; the run goes
on.

A call for a whole batch fails if it raises, takes too long, dies, or returns anything but a number or None for each
completion. It is then repeated for each completion alone, by processes that have not made the first call. A completion
that still fails has no reward, and the reason is reported. Reward models run in this process, on the run's device.
"""

from __future__ import annotations

import inspect
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.builtin_rewards import BUILTIN
from ft_host.errors import ConfigError, FtHostError
from ft_host.rewards.find import check_names, find_reward
from ft_host.rewards.functions import EXPECTED, RewardFunction, Scored, Scoring, check_columns, counted, score
from ft_host.rewards.model import RewardModel
from ft_host.rewards.process import INSIDE, Worker
from ft_host.rewards.sending import not_picklable, part_of
from ft_host.rewards.unrewarded import Unrewarded
from ft_host.util.imports import EXAMPLE

if TYPE_CHECKING:
    from ft_host.config.rollout import RolloutConfig

LOADING = 120.0  # seconds to start a process and import a function; not part of a call's time


@dataclass
class _Call:
    """A pending call: of all completions (`sample` None) or of one, by a worker whose number is above `after`."""

    index: int  # of the function
    sample: int | None = None
    after: int = 0


@dataclass
class _Turn:
    """What a worker is doing. `late`: the error if it has sent nothing by `deadline`."""

    call: _Call
    deadline: float
    late: str


@dataclass
class _Found:
    """The rewards of one function so far, by completion: a value or None, and the reason why there is none.

    `logged`: by the first completion of the call. `seen`: completions already counted for failures in a row.
    """

    rewards: dict[int, float | None] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    logged: dict[int, tuple[dict[str, list[float]], dict[str, list[Any]]]] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    seen: int = 0


class RewardPool:
    """The rewards of a run. `names` and `functions` are in the order of `specs`.

    Functions are inspected in a separate process too, so that none of the user's code runs in this one. Raises
    ConfigError for a reward that can't be found. Without `waits_again` a call that takes too long isn't repeated for
    each completion: `score` raises FtHostError.
    """

    def __init__(self, specs: list[str], config: RolloutConfig, option: str = "reward", *, waits_again: bool = True):
        self.config, self.option, self.waits_again = config, option, waits_again
        self.folder = os.getcwd()  # files are relative to it, even if the run changes its folder
        self.workers: list[Worker] = []
        self.started = 0
        self.specs = list(specs)
        for spec in specs:
            if not isinstance(spec, str):
                raise ConfigError(
                    f"{option}: found {spec!r}; rewards are called in other processes, which find them "
                    f"by name: give {_path_of(spec) or EXAMPLE}"
                )
        if INSIDE in os.environ:
            raise ConfigError(
                "the file with the rewards starts a training run when it is imported; put the training under "
                '`if __name__ == "__main__":`, or move the rewards to a separate file'
            )
        try:
            self.functions = [self._describe(spec) for spec in self.specs]
            check_names(self.functions, option)
        except BaseException:
            self.close()
            raise
        self.names = [function.name for function in self.functions]
        self.in_a_row = dict.fromkeys(self.names, 0)  # failed completions since the last one that was scored
        self.notes: list[str] = []  # for the user, since the last call
        self.told: set[str] = set()  # notes that were given before
        self.unrewarded = Unrewarded(config.max_reward_failures)

    def _describe(self, spec: str) -> RewardFunction:
        if spec in BUILTIN or ":" not in spec or Path(spec).is_dir():
            return find_reward(spec, self.config, self.option, arguments=self.config.reward_kwargs)
        worker = self.workers[0] if self.workers else self._start()
        worker.loaded.add(spec)
        worker.send("describe", spec, self.option, {}, self.config.seed)
        if not wait([worker.connection], LOADING):
            raise ConfigError(f"{self.option}: {spec} can't be imported: the import took longer than {LOADING:g} s")
        kind, answer = worker.receive()
        if kind != "described":
            raise ConfigError(answer if kind == "refused" else f"{self.option}: {spec} can't be imported: {answer}")
        return answer

    def score(self, scoring: Scoring) -> Scored:
        """Call all functions, as many at the same time as there are workers.

        Raises DataError for a column that is missing or can't be sent to a worker, and FtHostError where one function
        has failed for more than `max_reward_failures` completions in a row, or a reward model has failed. After any
        exception all workers are ended.
        """
        for function in self.functions:
            check_columns(function, scoring.columns)
        results = [_Found() for _ in self.functions]
        try:
            if scoring.completions:
                self._work(scoring, results)
        except BaseException:
            self.close()
            raise
        return self._gathered(results, len(scoring.completions))

    def close(self) -> None:
        """End all processes. The next `score` starts new ones."""
        while self.workers:
            self.workers.pop().end()

    # ------------------------------------------------------------ calls

    def _work(self, scoring: Scoring, results: list[_Found]) -> None:
        """Fill `found`."""
        models = [isinstance(function.call, RewardModel) for function in self.functions]
        waiting = [_Call(index) for index, model in enumerate(models) if not model]
        busy: dict[Worker, _Turn] = {}
        self._hand_out(waiting, busy, scoring)
        for function, its, model in zip(self.functions, results, models, strict=True):
            if model:
                its.rewards = dict(enumerate(score([function], scoring)[0]))
        while busy:
            soonest = min(turn.deadline for turn in busy.values())
            ready = wait([worker.connection for worker in busy], max(0.0, soonest - time.monotonic()))
            for worker, turn in list(busy.items()):
                if worker.connection in ready:
                    kind, *payload = worker.receive()
                elif turn.deadline <= time.monotonic():
                    kind, payload = "late", [turn.late]
                else:
                    continue
                if kind == "began":
                    limit = self.config.reward_timeout
                    busy[worker] = _Turn(turn.call, time.monotonic() + limit, f"took longer than {limit:g} s")
                    continue
                del busy[worker]
                call, its = turn.call, results[turn.call.index]
                if kind == "done":
                    *result, notes = payload
                    self.notes += notes
                    _note(its, call, *result)
                elif kind == "late" and not self.waits_again:
                    raise FtHostError(f"{self.functions[call.index]} {payload[0]}")
                else:
                    if kind == "died":
                        self.notes.append(f"{self.functions[call.index]}: {payload[0]}; another one takes its place")
                    if kind != "failed" or call.sample is None:
                        self.workers.remove(worker)
                        worker.end()
                    if call.sample is None:
                        samples = range(len(scoring.completions))
                        waiting += [_Call(call.index, sample, after=self.started) for sample in samples]
                    else:
                        its.rewards[call.sample], its.reasons[call.sample] = None, payload[0]
                self._look_at_failures(self.functions[call.index], its)
            self._hand_out(waiting, busy, scoring)

    def _hand_out(self, waiting: list[_Call], busy: dict[Worker, _Turn], scoring: Scoring) -> None:
        """Start as many calls as there are workers for."""
        for call in list(waiting):
            if len(busy) == self.config.reward_workers:
                return
            spec, function = self.specs[call.index], self.functions[call.index]
            worker = self._free_worker(call, spec, busy)
            if worker is None:
                continue
            waiting.remove(call)
            part = part_of(function, scoring, call.sample)
            worker.loaded.add(spec)
            try:
                arguments, seed, limit = self.config.reward_kwargs, self.config.seed, self.config.reward_timeout
                worker.send("call", spec, self.option, arguments, seed, part, limit)
            except Exception as error:
                raise not_picklable(function, part, error) from error
            busy[worker] = _Turn(call, time.monotonic() + LOADING, f"was not imported within {LOADING:g} s")

    def _free_worker(self, call: _Call, spec: str, busy: dict[Worker, _Turn]) -> Worker | None:
        """Return a worker for the call, preferably one that has imported the function's file. Start a new one if the
        limit allows.
        """
        for worker in [idle for idle in self.workers if idle not in busy and idle.process.poll() is not None]:
            self.workers.remove(worker)  # the system did, or something that a function left running
            self.notes.append(
                f"a process that calls rewards is gone ({worker.how_ended()}); another one takes its place"
            )
            worker.end()
        idle = [worker for worker in self.workers if worker not in busy and worker.number > call.after]
        if idle:
            return max(idle, key=lambda worker: spec in worker.loaded)
        # After a failed call there is room for a new worker, since the one that made it is gone.
        return self._start() if len(self.workers) < self.config.reward_workers else None

    def _start(self) -> Worker:
        self.started += 1
        self.workers.append(Worker(self.started, self.folder))
        return self.workers[-1]

    # ------------------------------------------------------------ results

    def _look_at_failures(self, function: RewardFunction, its: _Found) -> None:
        """Count failures in a row, in the order of completions, across calls."""
        most = self.config.max_reward_failures
        while its.seen in its.rewards:
            reason = its.reasons.get(its.seen)
            its.seen += 1
            self.in_a_row[function.name] = self.in_a_row[function.name] + 1 if reason else 0
            if self.in_a_row[function.name] > most:
                raise FtHostError(
                    f"{function} failed for {counted(most + 1, 'completion')} in a row (max_reward_failures: {most}), "
                    f"the last time: {reason}"
                )

    def _gathered(self, results: list[_Found], rows: int) -> Scored:
        scored = Scored(values=[[its.rewards[row] for its in results] for row in range(rows)])
        for name, its in zip(self.names, results, strict=True):
            if its.reasons:
                scored.failures[name] = sorted(its.reasons.items())
            for sample in sorted(its.logged):
                metrics, extra = its.logged[sample]
                for metric, values in metrics.items():
                    scored.metrics.setdefault(metric, []).extend(values)
                for column, values in extra.items():
                    # It replaces a column of the same name that another function logged.
                    its.columns.setdefault(column, [None] * rows)[sample : sample + len(values)] = values
            scored.extra |= its.columns
        scored.notes = [note for note in dict.fromkeys(self.notes) if note not in self.told]
        self.told |= set(scored.notes)
        self.notes.clear()
        return scored


def _note(its: _Found, call: _Call, rewards: list[float | None], bad: dict[int, str], *logged: Any) -> None:
    """Record the result of a call. A value that isn't finite fails its own completion only."""
    first = call.sample or 0
    its.rewards |= dict(enumerate(rewards, first))
    its.reasons |= {first + index: f"gave {shown}, {EXPECTED}" for index, shown in bad.items()}
    its.logged[first] = logged


def _path_of(spec: Any) -> str | None:
    """Return the spec of a function that was passed as an object; None for one without a name or inside another
    function.
    """
    if not inspect.isfunction(spec) or not spec.__qualname__.isidentifier():
        return None
    where = inspect.getsourcefile(spec) if spec.__module__ == "__main__" else spec.__module__
    return repr(f"{where}:{spec.__qualname__}")
