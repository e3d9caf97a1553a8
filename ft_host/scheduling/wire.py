"""A rollout process' end of the pipe: what arrives, what is told, and signs of life. `process` says what is sent."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from ft_host.errors import FtHostError
from ft_host.scheduling.unit import Event, Failed, Finished
from ft_host.util.ranks import Failure

BATCH = 0.25  # seconds in which events are gathered
STOPPED = 1.0  # seconds between two looks at the main thread; more pass only where the whole process was stopped


class Stillness:
    """How long the main thread has been in one turn, in seconds in which this process ran: what stops it (a scheduler
    of jobs, Ctrl-Z) stops all of its threads."""

    def __init__(self) -> None:
        self.seconds, self.looked, self.turned = 0.0, math.inf, math.inf

    def at(self, now: float, turned: float) -> float:
        """Return it. `turned`: when the turn began, by the same clock as `now`."""
        if turned != self.turned:
            self.seconds, self.looked = 0.0, turned
        self.seconds += min(now - self.looked, STOPPED)
        self.looked, self.turned = now, turned
        return self.seconds


class Wire:
    """The process' end of the pipe."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.lock = threading.Lock()
        self.told: deque[Event] = deque()
        self.news = threading.Event()
        self.arrived: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.turned = time.monotonic()  # when the main thread began its last turn
        self.loads = 0  # under way: then the main thread may stand still
        self.wake = threading.Event()  # set when a message arrives; the inbox' own once there is one

    def first(self) -> Any:
        return pickle.loads(self.connection.recv_bytes())

    def begin(self, beats: float, scratch: str | None) -> None:
        """Listen and tell from now on, and give a sign of life each `beats` seconds. `scratch`: a folder to be deleted
        if the trainer is killed."""
        threading.Thread(target=self._read, args=(scratch,), name="messages", daemon=True).start()
        threading.Thread(target=self._tell, args=(beats,), name="telling", daemon=True).start()

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """The main thread loads a model."""
        self.loads += 1
        yield
        self.turned = time.monotonic()
        self.loads -= 1

    def send(self, *message: Any) -> None:
        data = pickle.dumps(message)
        with self.lock, contextlib.suppress(OSError):  # the reader notices that the trainer is gone
            self.connection.send_bytes(data)

    def emit(self, event: Event) -> None:
        """Tell an event, soon; at once where a prompt has ended."""
        if isinstance(event, Failed):
            event = Failed(unit=event.unit, cause=event.cause, error=Failure.of(event.error).error)
        self.told.append(event)
        if isinstance(event, Finished | Failed):
            self.news.set()

    def flush(self) -> None:
        """Send the events so far."""
        with self.lock:
            events = [self.told.popleft() for _ in range(len(self.told))]
            if events:
                with contextlib.suppress(OSError):
                    self.connection.send_bytes(pickle.dumps(("events", events)))

    def broken(self, error: BaseException) -> None:
        told = error if isinstance(error, FtHostError) else FtHostError(f"{type(error).__name__}: {error}")
        self.flush()
        self.send("broken", Failure.of(told).error)

    def _read(self, scratch: str | None) -> None:
        try:
            while True:
                self.arrived.put(pickle.loads(self.connection.recv_bytes()))
                self.wake.set()
        except (EOFError, OSError):
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            os.killpg(0, signal.SIGKILL)  # its own session: this process and everything that it has started

    def _tell(self, beats: float) -> None:
        beat, stillness = 0.0, Stillness()
        while True:
            self.news.wait(BATCH)
            self.news.clear()
            try:
                self.flush()
            except Exception as error:  # an event that can't be sent
                self.send("broken", FtHostError(f"what a rollout made can't be sent: {error}"))
                os._exit(1)
            now = time.monotonic()
            still = stillness.at(now, self.turned)
            if now - beat >= beats:
                beat = now
                self.send("beat", 0.0 if self.loads else still)

    def next(self) -> tuple[Any, ...] | None:
        """Return the next message, None while there is none."""
        try:
            return self.arrived.get_nowait()
        except Empty:
            return None
