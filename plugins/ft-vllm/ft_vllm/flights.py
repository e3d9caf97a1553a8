"""Requests on their way to servers, each in a thread: tokens are handed on as they come, and a request whose server
fails goes on at another one with the tokens that it has.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any

from ft_host.api import ConfigError, FtHostError, Piece
from ft_vllm.client import Refused, Stream
from ft_vllm.fleet import Fleet, Member
from ft_vllm.sampling import Job, versions_of

TRIES = 3  # of a request, at several servers if there are
CHUNK = 16  # tokens that a server sends at a time
REFUSED = (400, 404, 405, 413, 422)  # the request is at fault, wherever it is sent


@dataclass(eq=False)
class Flight:
    """A request. `token_ids`: what it has got so far."""

    key: int
    job: Job
    token_ids: list[int] = field(default_factory=list)
    tries: int = 0
    stop: threading.Event = field(default_factory=threading.Event)  # it isn't to go on
    stream: Stream | None = None
    told: float = 0.0  # when it was sent, or got its last tokens


class Flights:
    """Sends up to `at_once` requests at a time. `emit(key, piece)` is called from any thread."""

    def __init__(self, fleet: Fleet, at_once: int, emit: Callable[[int, Piece], None]):
        self.fleet, self.at_once, self.emit = fleet, at_once, emit
        self.queue: SimpleQueue[Flight | None] = SimpleQueue()
        self.flights: dict[int, Flight] = {}  # that haven't ended
        self.changed = threading.Condition()
        self.threads = 0
        self.fatal: FtHostError | None = None  # what no other try can mend

    # ------------------------------------------------------------ the thread that asks

    def submit(self, key: int, job: Job) -> None:
        flight = Flight(key, job)
        with self.changed:
            self.flights[key] = flight
            if self.threads < min(len(self.flights), self.at_once):
                self.threads += 1
                threading.Thread(target=self._work, name=f"ft-vllm-{self.threads}", daemon=True).start()
        self.queue.put(flight)

    def withdraw(self, key: int) -> None:
        flight = self.flights.get(key)
        if flight is not None:
            self._stop(flight, cut=True)

    def stop(self) -> None:
        """Have no request begin or go on elsewhere; those at a server end when it says so."""
        for flight in list(self.flights.values()):
            self._stop(flight, cut=False)

    def wait_ended(self, seconds: float) -> None:
        """Until all have ended; those that still run after so many seconds are cut off."""
        with self.changed:
            if self.changed.wait_for(lambda: not self.flights, seconds):
                return
        for flight in list(self.flights.values()):
            self._stop(flight, cut=True)
        with self.changed:
            self.changed.wait_for(lambda: not self.flights, 5.0)

    def close(self) -> None:
        for flight in list(self.flights.values()):
            self._stop(flight, cut=True)
        for _ in range(self.threads):
            self.queue.put(None)

    def _stop(self, flight: Flight, cut: bool) -> None:
        flight.stop.set()
        with self.fleet.changed:  # those that wait for a server
            self.fleet.changed.notify_all()
        stream = flight.stream
        if cut and stream is not None:
            stream.cut()

    # ------------------------------------------------------------ a request's thread

    def _work(self) -> None:
        while (flight := self.queue.get()) is not None:
            try:
                self._fly(flight)
            except FtHostError as error:
                self.fatal = error
            finally:
                with self.changed:
                    self.flights.pop(flight.key, None)
                    self.changed.notify_all()

    def _fly(self, flight: Flight) -> None:
        avoid: Member | None = None
        while not flight.stop.is_set():
            member = self.fleet.take(flight.job.prompt_ids, avoid, flight.stop.is_set)
            if member is None:
                return
            error: FtHostError | None = None
            lost = False
            try:
                if self._ask(member, flight):
                    return
                flight.stop.wait(0.02)  # the server has ended it, for an update that isn't ours to wait for
                continue
            except Refused as refused:
                error = refused
                if refused.status in (401, 403):
                    raise ConfigError(str(refused)) from refused
                lost = refused.status == 404  # a server that was begun anew hasn't the adapter
                if refused.status in REFUSED and not lost:
                    error = None
                    self.emit(flight.key, problem(str(refused)))
                    return
            except FtHostError as failed:
                error, lost = failed, True
            finally:
                if flight.stop.is_set():
                    error = None  # cut off by us
                self.fleet.release(member, error, lost=lost)
            if error is None:
                return
            avoid = member
            flight.tries += 1
            if flight.tries >= TRIES:
                self.emit(flight.key, problem(f"{error}\n(tried {flight.tries} times)"))
                return
            flight.stop.wait(0.25 * 2 ** (flight.tries - 1) * random.uniform(0.5, 1.5))

    def _ask(self, member: Member, flight: Flight) -> bool:
        """Let a server complete what is left of a request. True where it has ended for good."""
        fleet, begun = self.fleet, len(flight.token_ids)
        body = {"model": fleet.model, **flight.job.body(flight.token_ids), "stream": True}
        body["sampling_params"]["stream_interval"] = CHUNK
        if fleet.keeps and fleet.version is not None:
            # what was computed with other weights, and is kept, isn't for this request
            body["cache_salt"] = str(fleet.version)
        reason, flight.told = None, time.monotonic()
        with member.client.stream("/inference/v1/generate", body, fleet.same) as stream:
            flight.stream = stream
            member.streams.add(stream)
            try:
                for event in stream:
                    if "error" in event:
                        raise Refused(f"vLLM at {member.url}: {event['error'].get('message', event['error'])}", 500)
                    for said in event["choices"]:
                        reason = self._take(member, flight, said, begun) or reason
            finally:
                member.streams.discard(stream)
                flight.stream = None
            if stream.whole and reason is None:
                raise FtHostError(f"vLLM at {member.url}: half an answer: it ended without a reason")
        return reason != "abort" or flight.stop.is_set()

    def _take(self, member: Member, flight: Flight, said: dict[str, Any], begun: int) -> str | None:
        tokens = said["token_ids"] or []
        logprobs = [entry["logprob"] for entry in (said["logprobs"] or {"content": []})["content"]]
        if len(tokens) != len(logprobs):
            raise FtHostError(f"vLLM at {member.url}: {len(tokens)} tokens with {len(logprobs)} log-probs")
        reason = said["finish_reason"]
        if reason not in (None, "stop", "length", "abort"):
            raise FtHostError(f"vLLM at {member.url} ended a completion with {reason!r}; expected stop or length")
        now = time.monotonic()
        seconds, flight.told = now - flight.told, now
        flight.token_ids += tokens
        versions = [] if self.fleet.version is None else [self.fleet.version] * len(tokens)
        if reason is not None:
            spans = [(span["version"], span["start"], span["end"]) for span in said.get("weight_versions") or []]
            told = versions_of(spans)
            if self.fleet.version is not None and len(told) == len(flight.token_ids) - begun:
                versions = told
            elif spans and self.fleet.version is not None and len(flight.token_ids) > begun:
                raise FtHostError(
                    f"vLLM at {member.url} sampled with weights of version {spans[-1][0]!r}; it was given version"
                    f" {self.fleet.version}"
                )
        ended = None if reason == "abort" else reason
        if tokens or ended is not None:
            piece = Piece(token_ids=tokens, logprobs=logprobs, finish_reason=ended, versions=versions)
            if len(self.fleet.members) > 1:
                piece = replace(piece, server=self.fleet.members.index(member), seconds=seconds)
            self.emit(flight.key, piece)
        return reason


def problem(text: str) -> Piece:
    return Piece(token_ids=[], logprobs=[], problem=text)
