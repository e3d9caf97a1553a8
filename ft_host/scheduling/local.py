"""Completions made in the trainer's process, while the trainer waits for them: `rollouts: overlap`.

The main thread steps the engine. Threads of units, with their rewards and tools, go on while the trainer trains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ft_host.scheduling.producer import Producer
from ft_host.scheduling.unit import Event, Unit
from ft_host.types import Completion, Request, Sampling

MEASURED = 1.0  # seconds between two measurements


class Local:
    """`make_producer(emit)` returns the producer. `holds`: whether the engine's weights are the trainer's own, so that
    nothing may be sampled while it trains; keys and values are held meanwhile with `recompute_cache: false` alone.
    `limit`: seconds that `generate` waits for a token."""

    def __init__(self, make_producer: Callable[[Callable[[Event], None]], Producer], *, holds: bool, limit: float):
        self.told: deque[Event] = deque()
        self.producer = make_producer(self._emit)
        self.holds, self.limit = holds, limit
        self.resting = False

    def _emit(self, event: Event) -> None:
        self.told.append(event)
        self.producer.inbox.news.set()

    def admit(self, units: list[Unit]) -> None:
        self.producer.admit(units)

    def events(self, patience: float) -> list[Event]:
        if self.resting:
            self.resting = False
            self.producer.inbox.resume()
        self.producer.step(0.0 if self.told else patience)
        self.producer.measure(MEASURED)
        return self._drained()

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        return self.producer.generate(requests, sampling, self.limit)

    def pause(self) -> None:
        self.producer.inbox.pause()

    def resume(self, version: int, weights: Any) -> None:
        self.resting = False
        self.producer.update(version, weights)

    def rest(self) -> None:
        self.producer.measure()
        if self.holds:
            self.resting = True
            self.producer.inbox.pause()

    def flush(self, patience: float) -> list[Event]:
        self.producer.measure()
        return self._drained()

    def circumstances(self) -> str:
        return self.producer.circumstances()

    def close(self) -> None:
        self.producer.close()

    def _drained(self) -> list[Event]:
        return [self.told.popleft() for _ in range(len(self.told))]
