"""The rollout process: runs `ft_rollout` all the time, beside the training. `remote` is the trainer's side.

From the trainer: ("open", Opening), ("admit", units), ("update", version, weights), ("pause", n), ("flush", n),
("generate", n, requests, sampling), ("stop",).
To the trainer: ("events", events), ("beat", seconds since the main thread's last turn), ("ready",), ("paused", n),
("flushed", n), ("generated", n, completions or an error), ("have", version), ("whole", version, why),
("broken", error).

The main thread steps the producer and alone touches the engine. One thread reads messages, one reads weights from their
folder, one tells the trainer what has happened. The process is a session of its own and ends with the trainer, together
with all that it has started.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ft_host.errors import FtHostError
from ft_host.models.published import Published, read_published
from ft_host.scheduling.inbox import Inbox
from ft_host.scheduling.opening import unit_run
from ft_host.scheduling.place import Opening, Place
from ft_host.scheduling.producer import Producer
from ft_host.scheduling.unit import Unit
from ft_host.scheduling.wire import Wire
from ft_host.types import Request, Sampling
from ft_host.util.ranks import Failure

TURN = 0.05  # seconds of a turn of the main thread
MEASURED = 1.0  # seconds between two measurements
UNREADABLE = 3  # times in a row that weights can't be read


def main(descriptor: int) -> None:
    """Do what the trainer says until it says stop, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wire = Wire(Connection(descriptor))
    try:
        kind, opening = wire.first()
        assert kind == "open"
        Rollouts(wire, opening).work()
    except BaseException as error:
        wire.broken(error)
        traceback.print_exc()  # into rollouts.log, which a full disk may refuse
        os._exit(1)
    os._exit(0)  # threads of prompts may still be waiting for something


class Rollouts:
    """The main thread."""

    def __init__(self, wire: Wire, opening: Opening):
        self.wire, self.opening = wire, opening
        wire.begin(opening.beats, opening.scratch)
        with wire.loading():
            self.place = Place.open(opening, wire.emit, wire.loading)
        self.made: Producer | None = None
        self.held: list[tuple[Any, ...]] = []  # what waits for the weights that were sent before it
        self.wanted: int | None = None  # the version that the trainer sent last
        self.have: int | None = None
        self.unread = 0  # times in a row that weights couldn't be read
        self.asked: list[tuple[int, list[Any]]] = []  # completions of no prompt, under way
        self.weights: SimpleQueue[tuple[int, str]] = SimpleQueue()  # for the thread that reads them
        threading.Thread(target=self._read_weights, name="weights", daemon=True).start()

    @property
    def producer(self) -> Producer:
        assert self.made is not None, "the engine is there"
        return self.made

    def work(self) -> None:
        wire = self.wire
        wire.send("ready")
        while True:
            wire.turned = time.monotonic()
            wire.wake.clear()
            while (message := wire.next()) is not None:
                if message[0] == "stop":
                    self._close()
                    return
                self.take(message)
            if self.made is None:
                wire.wake.wait(TURN)
                continue
            self.producer.step(TURN)
            self.producer.measure(MEASURED)
            self._answer()

    def _begin(self, version: int, connection: Any) -> None:
        """Make the engine, once it has weights, and begin what waits for it."""
        config, place, emit = self.opening.config, self.place, self.wire.emit
        inbox = Inbox(place.engine(connection), emit, version, recompute=config.recompute_cache)
        self.wire.wake = inbox.news
        self.made = Producer(
            plugins=place.plugins,
            inbox=inbox,
            rollout_run=partial(unit_run, place.session, place.tokenizer, emit),
            emit=emit,
        )
        self._has(version)

    def _has(self, version: int) -> None:
        self.have, self.unread = version, 0
        self.wire.send("have", version)
        held, self.held = self.held, []
        for message in held:
            self.take(message)

    # ------------------------------------------------------------ messages

    def take(self, message: tuple[Any, ...]) -> None:
        """Do what a message says. Prompts begin with no older weights than those that were sent before them."""
        kind, *arguments = message
        ready = self.made is not None and self.wanted in (None, self.have)
        if kind in HELD and not ready:
            self.held.append(message)
        else:
            MESSAGES[kind](self, *arguments)

    def _admit(self, units: list[Unit]) -> None:
        self.producer.admit(units)

    def _update(self, version: int, weights: Any) -> None:
        """Weights in a folder, what the backend's servers have told, or None where the policy isn't sampled."""
        self.wanted = version
        if weights is not None and not self.opening.serves:
            self.weights.put((version, weights))
        elif self.made is None:
            self._begin(version, weights)
        else:
            self.producer.update(version, weights)
            self._has(version)

    def _loaded(self, published: Published) -> None:
        """Weights have been read: stop what runs, copy them, go on."""
        version = published.version
        if self.made is None:
            self.place.apply(published)
            self._begin(version, None)
        else:
            self.producer.update(version, None, partial(self.place.apply, published))
            self._has(version)

    def _unreadable(self, version: int, error: FtHostError) -> None:
        self.unread += 1
        if self.unread > UNREADABLE:
            raise error
        self.wire.send("whole", version, str(error))

    def _pause(self, number: int) -> None:
        if self.made is not None:
            self.producer.inbox.pause()
        self.wire.flush()
        self.wire.send("paused", number)

    def _flush(self, number: int) -> None:
        if self.made is not None:
            self.producer.measure()
        self.wire.flush()
        self.wire.send("flushed", number)

    def _generate(self, number: int, requests: list[Request], sampling: Sampling) -> None:
        self.asked.append((number, [self.producer.inbox.submit(None, each, sampling, {}) for each in requests]))

    def _answer(self) -> None:
        """Send the completions of no prompt that are done."""
        for number, futures in [each for each in self.asked if all(future.done() for future in each[1])]:
            self.asked.remove((number, futures))
            try:
                answer: Any = [future.result() for future in futures]
            except FtHostError as error:
                answer = Failure.of(error).error
            self.wire.send("generated", number, answer)

    def _close(self) -> None:
        if self.made is not None:
            self.producer.close()
        self.place.close()

    # ------------------------------------------------------------ another thread

    def _read_weights(self) -> None:
        """Read weights beside the generating."""
        have: int | None = None
        while True:
            version, place = self.weights.get()
            try:
                published = read_published(Path(place), have)
            except FtHostError as error:
                self.wire.arrived.put(("unreadable", version, error))
            except Exception as error:
                told = FtHostError(f"{place} can't be read: {type(error).__name__}: {error}")
                self.wire.arrived.put(("unreadable", version, told))
            else:
                have = published.version
                self.wire.arrived.put(("loaded", published))
            self.wire.wake.set()


HELD = ("admit", "generate")
MESSAGES: dict[str, Callable[..., None]] = {
    "admit": Rollouts._admit,
    "update": Rollouts._update,
    "loaded": Rollouts._loaded,
    "unreadable": Rollouts._unreadable,
    "pause": Rollouts._pause,
    "flush": Rollouts._flush,
    "generate": Rollouts._generate,
}
