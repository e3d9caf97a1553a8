"""Calls functions of the user: in threads, each with a deadline, and on one event loop if they are async.

An error in a call isn't raised: it is returned as a `ToolResult`, which the model reads.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ft_host.errors import FtHostError

AT_ONCE = 64  # calls at a time, over all threads that ask: most of them wait for something
MOST_LEFT = 256  # abandoned calls that still run; more of them end the run
ENVIRONMENT: dict[str, object] = {"rollout/cause": "environment"}  # of errors, see `ft_host.scheduling.failures`


@dataclass(frozen=True)
class ToolResult:
    """The result of a call: a value, or an error."""

    value: Any = None
    problem: str = ""


NEWS = (0, ToolResult())  # of a lane that has come, in place of a call's number and result


class Refused(Exception):
    """Raised within a call: its message is the whole problem."""


@dataclass
class _Lane:
    """Calls that are made one after the other."""

    calls: list[Callable[[], Any]]
    future: Future[list[ToolResult]] = field(default_factory=Future)
    results: list[ToolResult] = field(default_factory=list)


@dataclass
class ToolExecutor:
    """Makes calls that may take `timeout` seconds each, for as many threads as ask for them."""

    timeout: float
    left: list[threading.Thread] = field(default_factory=list)  # of abandoned calls
    _waiting: deque[_Lane] = field(default_factory=deque)
    _news: queue.SimpleQueue[tuple[int, ToolResult]] = field(default_factory=queue.SimpleQueue)
    _at_work: bool = False  # whether a thread starts what waits
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # of calls
    _starting: threading.Lock = field(default_factory=threading.Lock)
    _loop: asyncio.AbstractEventLoop | None = None  # one for all calls, so that clients stay open
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, lanes: list[list[Callable[[], Any]]]) -> list[list[ToolResult]]:
        """Return the results of the calls of each lane, when all have ended. Raises what `start` does."""
        futures = [self.start(lane) for lane in lanes]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def start(self, lane: list[Callable[[], Any]]) -> Future[list[ToolResult]]:
        """Return the results to come of calls, which are made one after the other; those of other lanes run at the same
        time, and lanes begin in the order in which they came.

        A call that takes longer than `timeout` is abandoned: its thread can't be killed, so it is a daemon that nothing
        waits for. The future raises FtHostError if too many of these are still running. A lane that is cancelled before
        its first call isn't begun.
        """
        its = _Lane(lane)
        if not lane:
            its.future.set_result([])
            return its.future
        with self._starting:
            self._waiting.append(its)
            if not self._at_work:
                self._at_work = True
                threading.Thread(target=self._work, name="tools", daemon=True).start()
        self._news.put(NEWS)
        return its.future

    def _work(self) -> None:
        """Start calls and abandon late ones, until there are none."""
        running: dict[int, tuple[_Lane, threading.Thread, float]] = {}  # by number, with the deadline
        while self._begin(running):
            try:
                wait = min(deadline for _, _, deadline in running.values()) - time.monotonic()
                number, outcome = self._news.get(timeout=max(wait, 0.0))
            except queue.Empty:
                now = time.monotonic()
                for number in [number for number, (_, _, deadline) in running.items() if deadline <= now]:
                    its, thread, _ = running.pop(number)
                    self._abandon(its, thread)
                continue
            if number in running:  # otherwise it was abandoned before, or a lane has come
                its, _, _ = running.pop(number)
                self._finish(its, outcome)

    def _begin(self, running: dict[int, tuple[_Lane, threading.Thread, float]]) -> bool:
        """Start as many calls as may run. Returns whether any is running."""
        with self._starting:
            while self._waiting and len(running) < AT_ONCE:
                its = self._waiting.popleft()
                if not its.results and not its.future.set_running_or_notify_cancel():
                    continue
                number = next(self._numbers)
                arguments = (self, its.calls[len(its.results)], number, self._news)
                thread = threading.Thread(target=work, args=arguments, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    problem = f"a call of a tool can't begin: {error} ({threading.active_count()} are running)"
                    its.future.set_exception(FtHostError(problem, facts=ENVIRONMENT))
                    continue
                running[number] = (its, thread, time.monotonic() + self.timeout)
            self._at_work = bool(running)
            return self._at_work

    def _finish(self, its: _Lane, outcome: ToolResult) -> None:
        its.results.append(outcome)
        if len(its.results) == len(its.calls):
            its.future.set_result(its.results)
            return
        with self._starting:
            self._waiting.appendleft(its)

    def _abandon(self, its: _Lane, thread: threading.Thread) -> None:
        self.left[:] = [thread for thread in self.left if thread.is_alive()]
        self.left.append(thread)
        if len(self.left) <= MOST_LEFT:
            self._finish(its, ToolResult(problem=too_long(self.timeout)))
            return
        problem = (
            f"tool_timeout: {len(self.left)} calls that took longer than {self.timeout:g} s are still running; tools "
            "and environments that may hang should have deadlines of their own"
        )
        its.future.set_exception(FtHostError(problem, facts=ENVIRONMENT))

    def finished(self, value: Any) -> Any:
        """Return the value, or its result if it is awaitable."""
        if not inspect.isawaitable(value):
            return value
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            loop = self._loop
        try:
            return asyncio.run_coroutine_threadsafe(within(value, self.timeout), loop).result(self.timeout + 1)
        except TimeoutError:
            with self._lock:
                if self._loop is loop and not responsive(loop):
                    self._loop = None  # something blocks it; later calls get another one
            raise


def work(caller: ToolExecutor, call: Callable[[], Any], number: int, done: queue.SimpleQueue) -> None:
    """Make a call in its own thread and report the result."""
    try:
        outcome = ToolResult(caller.finished(call()))
    except Refused as refused:
        outcome = ToolResult(problem=str(refused))
    except BaseException as error:  # also sys.exit(): the caller waits for a result
        outcome = ToolResult(problem=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    done.put((number, outcome))


async def within(awaitable: Awaitable[Any], seconds: float) -> Any:
    task = asyncio.ensure_future(awaitable)
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
        raise Refused(too_long(seconds))
    return task.result()


def responsive(loop: asyncio.AbstractEventLoop) -> bool:
    answered = threading.Event()
    loop.call_soon_threadsafe(answered.set)
    return answered.wait(1)


def too_long(seconds: float) -> str:
    return f"took longer than {seconds:g} s"
