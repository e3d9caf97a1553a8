"""One inbox for the requests of all threads: they are handed to one engine, which takes new ones as others finish.

`ask` and `submit` are called from any thread and keep what a request has got so far, under a key that a second attempt
at the same unit has too: a request that was begun goes on with its tokens. All else is called from the engine's thread,
which alone touches the engine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
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


def key_of(request: Request, sampling: Sampling) -> str:
    """Return the name of a request within its unit: its model, and the noise that it has."""
    return f"{sampling.role} {sampling.seed} {request.number}"


class Inbox:
    """`emit` gets the Progress of units. `version` is that of the engine's weights."""

    def __init__(self, engine: Engine, emit: Callable[[Event], None], version: int, *, recompute: bool = True):
        self.engine, self.emit, self.version, self.recompute = engine, emit, version, recompute
        self.arrived: deque[Asked] = deque()  # from threads, not yet with the engine
        self.running: dict[int, Asked] = {}  # by the engine's key
        self.withdrawn: deque[int] = deque()  # units
        self.news = threading.Event()  # something has arrived
        self.paused = False
        self.last = 0  # the engine's last key
        self.tokens = 0  # sampled since it was read

    # ------------------------------------------------------------ any thread

    def submit(
        self, unit: int | None, request: Request, sampling: Sampling, known: dict[str, Begun]
    ) -> Future[Completion]:
        """Return the completion to come. `known`: the unit's requests of an earlier attempt, which this one goes on
        with; the future raises EngineFailed or Withdrawn."""
        key = key_of(request, sampling)
        begun = known.get(key, Begun())
        asked = Asked(unit, key, request, sampling, Future(), replace_lists(begun))
        if begun.finish_reason is not None:
            asked.future.set_result(completion_of(asked.begun))
            return asked.future
        self.arrived.append(asked)
        self.news.set()
        return asked.future

    def ask(
        self, unit: int | None, requests: list[Request], sampling: Sampling, known: dict[str, Begun]
    ) -> list[Completion]:
        """Return completions in the order of `requests`, when all have ended. Raises what a future does."""
        futures = [self.submit(unit, request, sampling, known) for request in requests]
        return [future.result() for future in futures]

    def withdraw(self, unit: int) -> None:
        """Forget the requests of a unit; its thread gets Withdrawn."""
        self.withdrawn.append(unit)
        self.news.set()

    # ------------------------------------------------------------ the engine's thread

    def step(self, patience: float) -> bool:
        """Hand over what has arrived, and what the engine has sampled. Waits `patience` seconds where there is nothing
        to do, and returns whether there was. Raises what the engine raises."""
        self.news.clear()
        self._take_back()
        if self.paused:
            self.news.wait(patience)
            return False
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
            for asked in reversed(list(self.running.values())):
                self.arrived.appendleft(asked)
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
        """Raise an error in all threads that wait."""
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
        try:
            self.engine.submit(self.last, request, asked.sampling)
        except FtHostError as error:  # a prompt without room, say
            asked.future.set_exception(error)
            return
        self.running[self.last] = asked

    def _deliver(self, pieces: list[tuple[int, Piece]]) -> None:
        for key, piece in pieces:
            asked = self.running.get(key)
            if asked is None:  # withdrawn meanwhile
                continue
            versions = piece.versions or [self.version] * len(piece.token_ids)
            asked.begun.add(replace(piece, versions=versions))
            self.tokens += len(piece.token_ids)
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
            if piece.problem:
                del self.running[key]
                asked.future.set_exception(EngineFailed(piece.problem))
            elif piece.finish_reason is not None:
                del self.running[key]
                asked.future.set_result(completion_of(asked.begun))

    def _take_back(self) -> None:
        while self.withdrawn:
            unit = self.withdrawn.popleft()
            for key in [key for key, asked in self.running.items() if asked.unit == unit]:
                self.engine.withdraw(key)
                self.running.pop(key).future.set_exception(Withdrawn("the prompt is no longer wanted"))
            for asked in [asked for asked in list(self.arrived) if asked.unit == unit]:
                self.arrived.remove(asked)
                asked.future.set_exception(Withdrawn("the prompt is no longer wanted"))


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
