"""Runs `ft_rollout` for each unit, in threads, over one inbox.

A thread does what the method says: `generate` waits in the inbox, `reward` in the processes of the rewards, tools in
threads of their own. So a slow part of one prompt holds up no other.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.contract.blame import blamed, owner_of
from ft_host.contract.generation import check_json, check_rollout
from ft_host.errors import ConfigError, DataError, FtHostError, HookError
from ft_host.metrics import Accumulator
from ft_host.rollouts.rollout import RolloutRun
from ft_host.scheduling.inbox import Attempt, EngineFailed, Inbox, Withdrawn
from ft_host.scheduling.unit import Event, Failed, Finished, Made, Measured, Started, Unit, Updated
from ft_host.types import Completion, Request, Sampling

if TYPE_CHECKING:
    from pluggy import PluginManager

THREADS = 512  # units at a time; more wait for a thread
PLACES = 3  # of a thread, in a message
DOING = {"generation": "its completions and tools", "reward": "its rewards", "": "the method itself"}
LOOK = 0.05  # seconds between two counts of the units that wait for rewards or tools, while the engine is busy
HOPELESS = (ConfigError, DataError, HookError)  # another attempt would end in the same way


@dataclass(frozen=True)
class Working:
    """A unit in its thread."""

    thread: threading.Thread
    attempt: Attempt
    rollout: RolloutRun

    @property
    def seconds(self) -> float:
        """How long it has done what it does."""
        return time.monotonic() - self.rollout.since

    def where(self) -> str:
        """Return the innermost places of its thread."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        places = traceback.extract_stack(frame)[: -PLACES - 1 : -1] if frame is not None else []
        return ", called from ".join(f"{each.name} ({each.filename}, line {each.lineno})" for each in places)


@dataclass
class Producer:
    """`rollout_run(unit, ask, submit)` returns what `ft_rollout` gets for a unit."""

    plugins: PluginManager
    inbox: Inbox
    rollout_run: Callable[..., RolloutRun]
    emit: Callable[[Event], None]
    waiting: deque[Unit] = field(default_factory=deque)
    threads: dict[int, threading.Thread] = field(default_factory=dict)
    scoring: int = 0  # units that waited for rewards or tools at once, at most, since it was told
    working: dict[int, Working] = field(default_factory=dict)
    away: int = 0  # units that wait for them now
    looked: float = 0.0  # when that was counted
    seconds: dict[str, float] = field(default_factory=dict)
    told: float = field(default_factory=time.time)

    # ------------------------------------------------------------ the engine's thread

    def admit(self, units: list[Unit]) -> None:
        self.waiting.extend(units)
        self._begin()

    def step(self, patience: float) -> None:
        """Move everything on, for about so many seconds at most."""
        self._begin()
        self._give_up_hanging()
        started = time.perf_counter()
        with blamed(self.plugins, "ft_engine"):
            worked = self.inbox.step(patience)
        if not worked or started - self.looked > LOOK:
            self.looked, self.away = started, self.elsewhere()
            self.scoring = max(self.scoring, self.away)
        self._took("generating" if worked else "scoring" if self.away else "idle", started)

    def elsewhere(self) -> int:
        """Return how many units are with their rewards or tools: their threads run, and no request of theirs does."""
        with self.inbox.lock:
            asking = {asked.unit for asked in [*self.inbox.running.values(), *self.inbox.arrived]}
        return sum(thread.is_alive() and unit not in asking for unit, thread in self.threads.items())

    def update(self, version: int, weights: Any, copy: Callable[[], None] | None = None) -> None:
        """Let the engine take over weights; `copy` puts them where it has them, while nothing is sampled."""
        started = time.perf_counter()
        if copy is not None:
            self.inbox.pause()
            copy()
        with blamed(self.plugins, "ft_engine"):
            self.inbox.update(version, weights)
        self._took("updating", started)
        self.emit(Updated(version=version, seconds=time.perf_counter() - started))

    def generate(self, requests: list[Request], sampling: Sampling, limit: float | None = None) -> list[Completion]:
        """Complete requests of no unit, moving everything on meanwhile. Raises FtHostError where the engine has sampled
        nothing for `limit` seconds."""
        futures = [self.inbox.submit(None, request, sampling, {}) for request in requests]
        tokens, moved = self.inbox.tokens, time.monotonic()
        while not all(future.done() for future in futures):
            self.step(0.05)
            if self.inbox.tokens != tokens:
                tokens, moved = self.inbox.tokens, time.monotonic()
            if limit is not None and time.monotonic() - moved > limit:
                left = sum(not future.done() for future in futures)
                raise FtHostError(
                    f"the sampler of {owner_of(self.plugins, 'ft_engine')} has sampled nothing for {limit:g} seconds "
                    f"(rollout_timeout): {left} of {len(futures)} completions are awaited, that its log-probs are "
                    "compared by",
                    facts={"watch/failed": "rollouts", "watch/failed_place": "rollout_timeout"},
                )
        return [future.result() for future in futures]

    def measure(self, every: float = 0.0) -> None:
        """Tell what was done since the last time, unless that is less than `every` seconds ago."""
        inbox = self.inbox
        if time.time() - self.told < every:
            return
        now, seconds, tokens = time.time(), self.seconds, inbox.tokens
        self.seconds, inbox.tokens, self.told = {}, 0, now
        servers, inbox.servers = inbox.servers, {}
        self.emit(
            Measured(
                at=now,
                seconds=seconds,
                tokens=tokens,
                running=len(inbox.running),
                queued=inbox.queued,
                scoring=self.scoring,
                servers=servers,
            )
        )
        self.scoring = 0

    def circumstances(self) -> str:
        """Say what the units wait for that have waited longest."""
        longest = sorted(self.working.items(), key=lambda item: item[1].rollout.since)[:3]
        return "".join(
            f"; prompt {number} has waited for {DOING[its.rollout.doing]} for {its.seconds:.0f} s: {its.where()}"
            for number, its in longest
        )

    def close(self) -> None:
        """End the engine. Threads that wait for it get an error, and end."""
        self.waiting.clear()
        self.inbox.fail(Withdrawn("the run ends"))
        self.inbox.engine.close()

    def _begin(self) -> None:
        for number in [number for number, thread in self.threads.items() if not thread.is_alive()]:
            del self.threads[number]
            its = self.working.pop(number, None)
            if its is not None and not its.attempt.over:
                error = FtHostError(f"the thread of prompt {number} has ended without a word")
                self.emit(Failed(unit=number, cause=None, error=error))
        now, units = time.time(), [self.waiting.popleft() for _ in range(len(self.waiting))]
        for unit in units:
            if len(self.threads) >= THREADS or unit.times.get("again", 0.0) > now:  # after a failure it has a pause
                self.waiting.append(unit)
                continue
            attempt = Attempt(self.inbox, unit.number, unit.begun)
            name = f"prompt {unit.number}"
            thread = threading.Thread(target=self._run, args=(unit, attempt), name=name, daemon=True)
            self.threads[unit.number] = thread
            thread.start()

    def _give_up_hanging(self) -> None:
        """Fail units whose method has done something of its own for half of rollout_timeout: nothing else limits it."""
        for number, its in list(self.working.items()):
            if its.rollout.doing or its.seconds < its.rollout.config.rollout_timeout / 2:
                continue
            del self.threads[number], self.working[number]
            if its.attempt.end():
                problem = (
                    f"{owner_of(self.plugins, 'ft_rollout')} has not come back for {its.seconds:.0f} s, outside of "
                    f"generate and reward; it is in {its.where()}"
                )
                error = FtHostError(problem, facts={"rollout/cause": "timeout"})
                self.emit(Failed(unit=number, cause="timeout", error=error))

    def _took(self, what: str, started: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - started

    # ------------------------------------------------------------ a unit's thread

    def _run(self, unit: Unit, attempt: Attempt) -> None:
        event: Event
        self.emit(Started(unit=unit.number, at=time.time()))
        try:
            event = Finished(unit=unit.number, made=self._made(unit, attempt), at=time.time())
        except Withdrawn:
            attempt.end()
            return
        except BaseException as error:  # sys.exit() too: the thread must not end without a word
            event = failure_of(unit.number, error)
        if attempt.end():
            self.emit(event)

    def _made(self, unit: Unit, attempt: Attempt) -> Made:
        rollout = self.rollout_run(unit, attempt.ask, attempt.submit)
        self.working[unit.number] = Working(threading.current_thread(), attempt, rollout)
        with blamed(self.plugins, "ft_rollout"):
            found = self.plugins.hook.ft_rollout(rows=unit.rows, rollout=rollout, run=rollout)
        found = check_rollout(self.plugins, found)
        check_json(self.plugins, "ft_rollout", found.rows)
        accumulator = Accumulator()
        accumulator.add(found.metrics)
        return Made(
            rows=found.rows,
            samples=found.samples,
            metrics=accumulator.local(),
            seconds=rollout.seconds,
            tokens=rollout.tokens,
            calls=rollout.calls,
        )


def failure_of(unit: int, error: BaseException) -> Failed:
    """Say what failed. What trying again can't mend ends the run."""
    if isinstance(error, FtHostError):
        error.everywhere = False  # other processes of the run have other units
    if isinstance(error, EngineFailed):
        return Failed(unit=unit, cause="engine", error=error)
    if isinstance(error, FtHostError) and not isinstance(error, HOPELESS):
        return Failed(unit=unit, cause=error.facts.get("rollout/cause"), error=error)
    told = error if isinstance(error, FtHostError) else FtHostError(f"{type(error).__name__}: {error}")
    return Failed(unit=unit, cause=None, error=told)
