"""Waiting for a source: what it tells goes into the ledger, and no wait is without a deadline and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ft_host.errors import FtHostError
from ft_host.scheduling.failures import Failures
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.measure import Times
from ft_host.scheduling.unit import (
    READY,
    RUNNING,
    WAITING,
    Broken,
    Event,
    Failed,
    Finished,
    Measured,
    Progress,
    Restarted,
    Said,
    Started,
    Unit,
    Updated,
)

if TYPE_CHECKING:
    from ft_host.generation import Completion, Request, Sampling
    from ft_host.run import Run
    from ft_host.scheduling.source import Source

T = TypeVar("T")
POLL = 0.2  # seconds between two looks at the source
STOPPED = 10.0  # seconds; a look that takes longer was one of a process that was stopped, and counts no more than this
MOVES = (Started, Progress, Finished, Failed, Updated)  # events that show that something goes on


@dataclass(kw_only=True)
class Post:
    """What comes from the source of one rank. `source` is None until it is opened."""

    run: Run
    ledger: Ledger
    failures: Failures
    limit: float  # seconds without any progress
    source: Source | None = None
    moved: float = 0.0  # when something went on last
    waited: float = 0.0  # seconds, since it was read
    times: Times = field(default_factory=Times)

    def wait(self, look: Callable[[], T | None], seconds: float, early: Callable[[], bool] = bool) -> T | None:
        """Return what `look` gives as soon as it isn't None; None after so many seconds, where `early` says so, and if
        the run is to stop. Raises FtHostError where nothing has gone on for `limit` seconds, and what ends the run."""
        started = time.monotonic()
        try:
            while (found := look()) is None:
                now = time.monotonic()
                if now - started > seconds or early() or self.run.signals.asked:
                    return None
                self.take(self.source.events(POLL))
                after = time.monotonic()
                self.moved = min(after, self.moved + max(0.0, after - now - STOPPED))
                if after - self.moved > self.limit:
                    raise self.too_late()
            return found
        finally:
            self.waited += time.monotonic() - started

    def begin(self) -> None:
        """A wait begins: what came before it doesn't count for its deadline."""
        self.waited, self.moved = 0.0, time.monotonic()

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """Complete requests of no prompt; none on ranks without a source."""
        return [] if self.source is None else self.source.generate(requests, sampling)

    def close(self) -> None:
        """End the source. May be called again."""
        if self.run.timeline is not None:
            self.run.timeline.flush()
        source, self.source = self.source, None
        if source is not None:
            source.close()

    def take(self, events: list[Event]) -> None:
        """Put events into the ledger. Raises the error that ends the run."""
        if any(isinstance(event, MOVES) for event in events):
            self.moved = time.monotonic()
        for event in events:
            HANDLERS[type(event)](self, event)

    def measured(self, event: Measured | Updated) -> None:
        self.times.add(event)
        if self.run.timeline is not None:
            self.run.timeline.seen(event)
            self.run.timeline.depth(*(self.ledger.count(state) for state in (READY, RUNNING, WAITING)))

    def finished(self, event: Finished) -> None:
        self.ledger.finish(event)
        self.failures.completed()

    def failed(self, event: Failed) -> None:
        unit = self.ledger.units.get(event.unit)
        if unit is None:
            return
        if self.failures.take(event, unit) == "retry":
            unit.state = WAITING
            self.source.admit([unit])
            return
        self.ledger.set_aside(event.unit)

    def too_late(self) -> FtHostError:
        """Return the error of a wait that has reached its deadline: what was waited for, and how far it is."""
        units = list(self.ledger.units.values())
        unfinished = [unit for unit in units if unit.state != READY]
        shown = "; ".join(told(unit) for unit in unfinished[:3])
        what = f"{len(unfinished)} prompts are under way, {len(units) - len(unfinished)} are done"
        return FtHostError(
            f"no completion has got any further for {self.limit:g} seconds (rollout_timeout): {what}. {shown}"
            f"{self.source.circumstances()}",
            facts={"watch/failed": "rollouts", "watch/failed_place": "rollout_timeout"},
        )


def told(unit: Unit) -> str:
    """Say how far a prompt is."""
    if unit.state != RUNNING:
        return f"prompt {unit.number} waits for its turn"
    open_ones = [begun for begun in unit.begun.values() if begun.finish_reason is None]
    if open_ones or not unit.begun:
        return f"prompt {unit.number} is being completed ({unit.tokens} tokens so far)"
    return f"prompt {unit.number} has {unit.tokens} tokens, and its rewards or tools haven't answered"


def _said(post: Post, event: Said) -> None:
    post.run.say_once(event.text, event.level)


def _restarted(post: Post, event: Restarted) -> None:
    post.run.say(event.text, "warning")
    post.run.record_facts({"watch/rollout_restarts": event.times, "watch/rollout_restart_cause": event.why})


def _broken(post: Post, event: Broken) -> None:
    raise event.error


HANDLERS: dict[type, Callable[[Post, Any], None]] = {
    Started: lambda post, event: post.ledger.begun(event),
    Progress: lambda post, event: post.ledger.progress(event),
    Finished: Post.finished,
    Failed: Post.failed,
    Said: _said,
    Restarted: _restarted,
    Measured: Post.measured,
    Updated: Post.measured,
    Broken: _broken,
}
