"""One inbox for the requests of all threads: they are handed to one engine, which takes new ones as others finish.

`submit` is called from any thread and keeps what a request has got so far, under a key that a second attempt at the
same unit has too: a request that was begun goes on with its tokens. `withdraw` gives
those of an attempt up. All else is called from the engine's thread, which alone touches the engine.
"""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from ft_host.errors import FtHostError
from ft_host.scheduling.unit import Begun, Event, Progress
from ft_host.types import Completion, Engine, Piece, Request, Sampling


class EngineFailed(FtHostError):
    """A request failed in the engine: trying it again may help."""


class Withdrawn(FtHostError):
    """The unit of a request is no longer wanted."""


@dataclass
class Asked:
    """A request on its way through the engine."""

    unit: int | None  # None: of an evaluation or a probe, which nothing is kept of
    key: str
    request: Request
    sampling: Sampling
    future: Future[Completion]
    begun: Begun = field(default_factory=Begun)
    withdrawn: bool = False


def key_of(request: Request, sampling: Sampling) -> str:
    """Return the name of a request within its unit: its model, the noise that it has, and its prompt, which in a second
    attempt may be another one, where a tool has answered otherwise. `Attempt` tells equal ones apart."""
    prompt = hashlib.blake2b(array("q", request.prompt_ids).tobytes(), digest_size=6).hexdigest()
    return f"{sampling.role} {sampling.seed} {request.number} {prompt}"


class Inbox:
    """`emit` gets the Progress of units. `version` is that of the engine's weights."""

    def __init__(self, engine: Engine, emit: Callable[[Event], None], version: int, *, recompute: bool = True):
        self.engine, self.emit, self.version, self.recompute = engine, emit, version, recompute
        self.arrived: deque[Asked] = deque()  # from threads, not yet with the engine
        self.running: dict[int, Asked] = {}  # by the engine's key
        self.news = threading.Event()  # something has arrived
        self.lock = threading.RLock()  # of `arrived` and `running`, and of telling what a request has got
        self.failed: FtHostError | None = None  # what ended it
        self.paused = False
        self.last = 0  # the engine's last key
        self.tokens = 0  # sampled since it was read
        self.servers: dict[int, tuple[int, float]] = {}  # of several: tokens of each, and seconds of its requests

    # ------------------------------------------------------------ any thread

    def submit(
        self, unit: int | None, request: Request, sampling: Sampling, known: dict[str, Begun], key: str = ""
    ) -> Future[Completion]:
        """Return the completion to come. `known`: the unit's requests of an earlier attempt, by `key`, which this one
        goes on with; the future raises EngineFailed or Withdrawn."""
        begun = known.get(key, Begun())
        asked = Asked(unit, key, request, sampling, Future(), replace_lists(begun))
        asked.future.set_running_or_notify_cancel()  # only `withdraw` ends it: the engine's thread sets its result
        if begun.finish_reason is not None:
            asked.future.set_result(completion_of(asked.begun))
            return asked.future
        with self.lock:
            if self.failed is None:
                self.arrived.append(asked)
        if self.failed is not None:
            asked.future.set_exception(self.failed)
        self.news.set()
        return asked.future

    def withdraw(self, unit: int) -> None:
        """Give up the requests of a unit: what waits for them gets Withdrawn, and when this returns, nothing more is
        told of them, so that the unit can be tried again."""
        with self.lock:
            for asked in [*self.running.values(), *self.arrived]:
                if asked.unit == unit and not asked.withdrawn:
                    asked.withdrawn = True
                    asked.future.set_exception(Withdrawn("the prompt is no longer wanted"))
        self.news.set()

    # ------------------------------------------------------------ the engine's thread

    def step(self, patience: float) -> bool:
        """Hand over what has arrived, and what the engine has sampled. Waits `patience` seconds where there is nothing
        to do, and returns whether there was. Raises what the engine raises."""
        self.news.clear()
        self._forget()
        if self.paused:
            self.news.wait(patience)
            return False
        with self.lock:  # what is asked at once is begun at once
            while self.arrived:
                self._start(self.arrived.popleft())
        if not self.running:
            self.news.wait(patience)
            return False
        self._deliver(self.engine.poll(patience))
        return True

    def pause(self) -> None:
        """Stop what runs, keeping its tokens, unless the engine is to go on with its old keys and values."""
        self.paused = True
        if self.recompute and self.running:
            self.engine.interrupt()
            self._deliver(self.engine.poll(0.0))
            with self.lock:
                self.arrived.extendleft(reversed(self.running.values()))
                self.running.clear()

    def resume(self) -> None:
        self.paused = False
        self.news.set()

    def update(self, version: int, weights: object) -> float:
        """Let the engine take over weights. Returns the seconds that it stood still."""
        started = time.perf_counter()
        self.pause()
        self.engine.update(version, weights)
        self.version = version
        self.resume()
        return time.perf_counter() - started

    def fail(self, error: FtHostError) -> None:
        """Raise an error in all threads that wait, and in those that submit anything from here on."""
        with self.lock:
            self.failed = error
            waiting = [*self.running.values(), *self.arrived]
            self.running.clear()
            self.arrived.clear()
        for asked in waiting:
            asked.future.set_exception(error)

    @property
    def queued(self) -> int:
        return len(self.arrived)

    def _start(self, asked: Asked) -> None:
        done = len(asked.begun.token_ids)
        request = asked.request
        if done:
            most = asked.sampling.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
            request = replace(
                request,
                prompt_ids=request.prompt_ids + asked.begun.token_ids,
                offset=request.offset + done,
                max_new_tokens=most - done,
            )
        self.last += 1
        with self.lock:
            if asked.withdrawn:
                return
            try:
                self.engine.submit(self.last, request, asked.sampling)
            except FtHostError as error:  # a prompt without room, say
                asked.future.set_exception(error)
                return
            self.running[self.last] = asked

    def _deliver(self, pieces: list[tuple[int, Piece]]) -> None:
        for key, piece in pieces:
            with self.lock:
                asked = self.running.get(key)
                if asked is None or asked.withdrawn:
                    continue
                self._tell(asked, piece)
                if piece.problem or piece.finish_reason is not None:
                    del self.running[key]
            if piece.problem:
                asked.future.set_exception(EngineFailed(piece.problem))
            elif piece.finish_reason is not None:
                asked.future.set_result(completion_of(asked.begun))

    def _tell(self, asked: Asked, piece: Piece) -> None:
        versions = piece.versions or [self.version] * len(piece.token_ids)
        asked.begun.add(replace(piece, versions=versions))
        self.tokens += len(piece.token_ids)
        if piece.server is not None:
            tokens, seconds = self.servers.get(piece.server, (0, 0.0))
            self.servers[piece.server] = (tokens + len(piece.token_ids), seconds + piece.seconds)
        if asked.unit is not None and (piece.token_ids or piece.finish_reason):
            self.emit(
                Progress(
                    unit=asked.unit,
                    key=asked.key,
                    token_ids=piece.token_ids,
                    logprobs=piece.logprobs,
                    versions=versions,
                    finish_reason=piece.finish_reason,
                )
            )

    def _forget(self) -> None:
        """Take back from the engine what was withdrawn."""
        with self.lock:
            for key in [key for key, asked in self.running.items() if asked.withdrawn]:
                self.engine.withdraw(key)
                del self.running[key]


@dataclass
class Attempt:
    """What one attempt at a unit asks for. Requests that are alike in all (a method may ask twice for the same) are
    numbered, so that each has tokens of its own."""

    inbox: Inbox
    unit: int
    known: dict[str, Begun]  # of attempts before
    asked: Counter[str] = field(default_factory=Counter)
    over: bool = False

    def end(self) -> bool:
        """End the attempt: nothing more is told of what it has asked for, and it can ask for nothing. Returns False if
        it had ended."""
        with self.inbox.lock:
            if self.over:
                return False
            self.over = True
            self.inbox.withdraw(self.unit)
            return True

    def submit(self, request: Request, sampling: Sampling) -> Future[Completion]:
        """Return the completion to come; the future raises EngineFailed or Withdrawn. Raises Withdrawn after `end`."""
        if self.over:
            raise Withdrawn("the attempt at this prompt was given up")
        key = key_of(request, sampling)
        self.asked[key] += 1
        if self.asked[key] > 1:
            key += f" {self.asked[key]}"
        return self.inbox.submit(self.unit, request, sampling, self.known, key)

    def ask(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """Return completions in the order of `requests`, when all have ended. Raises what a future does."""
        with self.inbox.lock:
            futures = [self.submit(request, sampling) for request in requests]
        return [future.result() for future in futures]


def replace_lists(begun: Begun) -> Begun:
    """Return a copy that can be added to."""
    return Begun(
        token_ids=list(begun.token_ids),
        logprobs=list(begun.logprobs),
        versions=list(begun.versions),
        finish_reason=begun.finish_reason,
    )


def completion_of(begun: Begun) -> Completion:
    reason = begun.finish_reason
    assert reason is not None, "it has ended"
    return Completion(token_ids=begun.token_ids, logprobs=begun.logprobs, finish_reason=reason, versions=begun.versions)
