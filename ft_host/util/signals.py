"""SIGINT (Ctrl-C), SIGTERM and SIGHUP (a terminal that was closed): each asks a run to stop. Imports no torch.

Before the first step, and where nothing is lost by it, a signal ends at once what the process is doing. During training
it is noted, and heeded when the step is done. A second Ctrl-C doesn't wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PAUSE = 0.5  # seconds after an interruption in which another one is the same: somebody presses Ctrl-C several times


class Stop(KeyboardInterrupt):
    """A signal ends what the process is doing."""


class Signals:
    """The signals of this process. Nothing is caught before `catch`, which belongs on the main thread: Python delivers
    signals to no other, and whoever started one handles them."""

    def __init__(self) -> None:
        self.asked = False  # to stop
        self.hurried = False  # asked again with Ctrl-C
        self.waits = False  # whether a first signal is noted, to be heeded later
        self.say: Callable[[], None] | None = None  # called when a signal is noted
        self._held = False
        self._interrupted_at = -PAUSE
        self._before: dict[int, Any] = {}

    def catch(self) -> None:
        for number in NUMBERS:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:
                continue  # nohup: the process is to outlive its terminal
            self._before[number] = before
            signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whom they belonged before `catch`."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if before is None else before)  # None: set by a library in C

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that a signal may break off, also while signals are noted. Raises Stop."""
        waits, self.waits = self.waits, False
        try:
            if self.asked:
                raise Stop
            yield
        finally:
            self.waits = waits

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Work of a moment that no signal may break off: the record of how a run has ended."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._held or time.monotonic() - self._interrupted_at < PAUSE:
            self.asked = True
            return
        if self.waits and not self.asked:
            self.asked = True
            self._tell()
            return
        if self.waits and number != signal.SIGINT:
            return
        self.hurried = self.waits
        self.asked = True
        self._interrupted_at = time.monotonic()
        raise Stop

    def _tell(self) -> None:
        if self.say is None:
            return
        try:
            self.say()
        except RuntimeError:  # the signal came within a print, and a stream can't be entered twice
            os.write(2, b"stopping; the state will be saved\n")


_caught: list[Signals] = []


@contextlib.contextmanager
def caught() -> Iterator[Signals]:
    """The signals of this process, caught within the block. Within another such block they are that one's. On another
    thread than the main one nothing is caught."""
    if threading.current_thread() is not threading.main_thread():
        yield Signals()
        return
    if _caught:
        yield _caught[0]
        return
    signals = Signals()
    _caught.append(signals)
    signals.catch()
    try:
        yield signals
    finally:
        _caught.remove(signals)
        signals.restore()


def ignore() -> None:
    """Ignore all of them from now on: the process is at its end."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
