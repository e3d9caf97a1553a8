"""Calls functions of the user: in threads, each with a deadline, and on one event loop if they are async.

An error in a call isn't raised: it is returned as a `ToolResult`, which the model reads.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ft_host.errors import FtHostError

AT_ONCE = min(32, (os.cpu_count() or 1) + 4)  # concurrent calls, as many as Python's own pools allow
MOST_LEFT = 256  # abandoned calls that still run; more of them end the run


@dataclass(frozen=True)
class ToolResult:
    """The result of a call: a value, or an error."""

    value: Any = None
    problem: str = ""


class Refused(Exception):
    """Raised within a call: its message is the whole problem."""


@dataclass
class ToolExecutor:
    """Makes calls that may take `timeout` seconds each."""

    timeout: float
    left: list[threading.Thread] = field(default_factory=list)  # of abandoned calls
    _loop: asyncio.AbstractEventLoop | None = None  # one for all calls, so that clients stay open
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, lanes: list[list[Callable[[], Any]]]) -> list[list[ToolResult]]:
        """Return the results of the calls of each lane: those of a lane one after the other, lanes at the same time.

        A call that takes longer than `timeout` is abandoned: its thread can't be killed, so it is a daemon that nothing
        waits for. Raises FtHostError if too many of these are still running.
        """
        outcomes: list[list[ToolResult]] = [[] for _ in lanes]
        waiting = deque(index for index, lane in enumerate(lanes) if lane)
        running: dict[int, tuple[threading.Thread, float]] = {}  # by lane, with its deadline
        done: queue.SimpleQueue[tuple[int, int, ToolResult]] = queue.SimpleQueue()

        def finish(index: int, outcome: ToolResult) -> None:
            outcomes[index].append(outcome)
            del running[index]
            if len(outcomes[index]) < len(lanes[index]):
                waiting.appendleft(index)

        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                index = waiting.popleft()
                number = len(outcomes[index])
                arguments = (self, lanes[index][number], index, number, done)
                thread = threading.Thread(target=work, args=arguments, daemon=True)
                thread.start()
                running[index] = (thread, time.monotonic() + self.timeout)
            try:
                wait = min(deadline for _, deadline in running.values()) - time.monotonic()
                index, number, outcome = done.get(timeout=max(wait, 0.0))
            except queue.Empty:
                now = time.monotonic()
                for index in [index for index, (_, deadline) in running.items() if deadline <= now]:
                    self._give_up(running[index][0])
                    finish(index, ToolResult(problem=too_long(self.timeout)))
                continue
            if index in running and number == len(outcomes[index]):  # otherwise it was abandoned before
                finish(index, outcome)
        return outcomes

    def _give_up(self, thread: threading.Thread) -> None:
        self.left[:] = [thread for thread in self.left if thread.is_alive()]
        self.left.append(thread)
        if len(self.left) > MOST_LEFT:
            raise FtHostError(
                f"tool_timeout: {len(self.left)} calls that took longer than {self.timeout:g} s are still running; "
                "tools and environments that may hang should have deadlines of their own"
            )

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


def work(caller: ToolExecutor, call: Callable[[], Any], index: int, number: int, done: queue.SimpleQueue) -> None:
    """Make a call in its own thread and report the result."""
    try:
        outcome = ToolResult(caller.finished(call()))
    except Refused as refused:
        outcome = ToolResult(problem=str(refused))
    except BaseException as error:  # also sys.exit(): the caller waits for a result
        outcome = ToolResult(problem=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    done.put((index, number, outcome))


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
