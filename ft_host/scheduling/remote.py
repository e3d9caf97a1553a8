"""Completions made in a rollout process, all the time: `rollouts: async`. `process` is the other side.

The process is watched: one that has died, shows no sign of life, or gets no token although requests run, is started
again, with a longer pause each time. It then goes on with what the ledger has of the prompts that were under way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ft_host.errors import BackendGone, ConfigError, DataError, FtHostError, HookError, PluginBroken, PluginNotFound
from ft_host.models.weights_folder import WeightsFolder
from ft_host.scheduling.child import Child, Limits
from ft_host.scheduling.place import Opening
from ft_host.scheduling.unit import Event, Failed, Finished, Measured, Restarted, Started, Unit
from ft_host.types import Completion, Request, Sampling

# A new process would say the same.
HOPELESS = (BackendGone, ConfigError, DataError, HookError, PluginBroken, PluginNotFound)
LOOK = 0.2  # seconds between two looks at the process while an answer is awaited
LOG = "rollouts.log"
GONE = "closed the connection"


class Remote:
    """`unfinished` returns the prompts of the ledger that aren't ready, with what they have begun, for a process that
    is started anew. `weights`: the folder of published weights; None where they are in servers."""

    def __init__(
        self,
        opening: Opening,
        environment: dict[str, str],
        unfinished: Callable[[], list[Unit]],
        limits: Limits,
        weights: WeightsFolder | None = None,
    ):
        self.opening, self.environment, self.unfinished = opening, environment, unfinished
        self.limits, self.weights = limits, weights
        self.log = Path(opening.folder) / LOG
        self.news = threading.Condition()
        self.told: deque[Event] = deque()
        self.answers: dict[int, Any] = {}
        self.latest: tuple[int, Any] | None = None  # version and weights that were sent last
        self.wants_whole = False
        self.paused = False
        self.asked = 0  # questions so far
        self.number = 0  # of the process
        self.deaths = 0  # since a prompt was completed
        self.restart_at: float | None = None  # when a process that is gone is started anew
        self.again = False  # whether the new process must get what is unfinished
        self.left = False  # whether events of an earlier process haven't been taken yet
        try:
            self._begin()
        except BaseException:
            if weights is not None:
                weights.remove()
            raise

    # ------------------------------------------------------------ as Source says

    def admit(self, units: list[Unit]) -> None:
        if not self.again:  # else they are among those that the new process gets
            self._send("admit", units)

    def events(self, patience: float) -> list[Event]:
        self._look()
        if self.again and not self.left and self.restart_at is None:
            self.again = False
            self._send("admit", self.unfinished())
        with self.news:
            if not self.told:
                self.news.wait(patience)
        return self._drained()

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """As `Source.generate`. Asks again where the process is started anew meanwhile. Raises FtHostError."""
        answer = None
        while answer is None:
            answer = self._ask("generate", requests, sampling)
        if isinstance(answer, FtHostError):
            raise answer
        return answer

    def pause(self) -> None:
        self.paused = True
        self._ask("pause")

    def resume(self, version: int, weights: Any) -> None:
        self.paused = False
        self.latest = (version, weights)
        self._send("update", version, str(weights) if isinstance(weights, Path) else weights)

    def rest(self) -> None:
        """The process has a device of its own, or memory of its own."""

    def flush(self, patience: float) -> list[Event]:
        self._ask("flush", patience=patience)
        return self._drained()

    def circumstances(self) -> str:
        child = self.child
        if self.restart_at is not None:
            return f"\nThe rollout process {child.how_ended()}, and is about to be started again.{self._quoted()}"
        child.write_stacks()
        state = "is working" if self.ready else "is still loading"
        return f"\nThe rollout process (pid {child.process.pid}) {state}.{self._quoted()}"

    def close(self) -> None:
        self.child.end(politely=True)
        if self.weights is not None:
            self.weights.remove()

    # ------------------------------------------------------------ one process after the other

    def _begin(self) -> None:
        self.alive = False  # whether it has given a sign of life: importing takes its time
        self.ready = False
        self.gone: str | None = None  # why it can't go on
        self.error: FtHostError | None = None  # that it has sent
        self.stuck = 0.0  # seconds that its main thread has been at the same place, as it says
        self.wet: float | None = None  # when a token was sampled last, or none was asked for; in its time
        self.dry = 0.0  # seconds in which running requests have got no token
        self.under_way: set[int] = set()  # units whose threads run
        self.number += 1
        self.child = Child(self.log, self.environment, partial(self._heard, self.number))
        try:
            self.child.send("open", self.opening)
        except Exception as error:
            self.child.end()
            raise FtHostError(
                f"rollouts: async: the config can't be sent to the rollout process ({type(error).__name__}: {error}); "
                "classes of its values must be in modules that another process can import"
            ) from error

    def _look(self) -> None:
        """See whether the process lives, and do what it asks for. Raises FtHostError where it can't be started
        again."""
        child, limits = self.child, self.limits
        if self.restart_at is not None:
            if time.monotonic() >= self.restart_at:
                self._restart()
            return
        if self.wants_whole and self.weights is not None:
            self.wants_whole = False
            self._send_latest()
        if self.gone is None:
            if child.silent > (limits.silence if self.alive else limits.answer):
                self.gone = f"has shown no sign of life for {child.silent:.0f} seconds"
            elif self.stuck > limits.stuck:
                self.gone = f"has stood still at one place for {self.stuck:.0f} seconds"
            elif self.dry > limits.stuck:
                self.gone = f"has sampled nothing for {self.dry:.0f} seconds, though requests are under way"
            else:
                return
            child.write_stacks()
        self._died(self.gone)

    def _died(self, how: str) -> None:
        """End what is left of the process. It is started again in a while, unless that has been tried too often."""
        child, limits, error = self.child, self.limits, self.error
        if error is not None:
            how = f"has failed: {error}"
        elif how == GONE:
            how = child.how_ended()
        child.end()
        if isinstance(error, HOPELESS):
            raise error
        self.deaths += 1
        facts = self._facts()
        if self.deaths > limits.restarts:
            often = f"{self.deaths} times without completing a prompt, the last time" if self.deaths > 1 else "once"
            raise FtHostError(
                f"the rollout process was lost {often} because it {how} (rollout_retries: engine "
                f"{limits.restarts}){self._quoted()}",
                facts=facts,
            )
        text = f"the rollout process {how}"
        with self.news:
            for unit in sorted(self.under_way):
                self.told.append(Failed(unit=unit, cause="engine", error=FtHostError(text, facts=facts)))
            self.told.append(
                Restarted(
                    times=self.number,
                    why=how,
                    text=f"{text}; it is started again ({self.deaths} of {limits.restarts} times), and "
                    f"{len(self.under_way)} prompts go on with the tokens that they have; see {self.log}",
                )
            )
        self.again = self.left = True
        self.restart_at = time.monotonic() + min(limits.pause * 2 ** (self.deaths - 1), limits.longest)

    def _restart(self) -> None:
        self.restart_at = None
        self._begin()
        self._send_latest()
        if self.paused:
            self._send("pause", 0)

    def _send_latest(self) -> None:
        """Send the last weights once more, whole."""
        if self.latest is None:
            return
        version, weights = self.latest
        if isinstance(weights, Path) and self.weights is not None:
            weights = str(self.weights.whole())
        self._send("update", version, weights)

    def _facts(self) -> dict[str, object]:
        return {"watch/failed": "process", "watch/failed_place": str(self.log)}

    def _quoted(self) -> str:
        lines = self.child.last_lines()
        return f"\nIts last lines ({self.log}):\n{lines}" if lines else ""

    def _send(self, *message: Any) -> None:
        if self.restart_at is None:
            self.child.send(*message)

    def _ask(self, what: str, *arguments: Any, patience: float | None = None) -> Any:
        """Return the answer to a question; None where the process is gone, or after `patience` seconds. Raises
        FtHostError where it can't be started again, or has been silent for too long."""
        self.asked += 1
        self.answers.clear()  # to questions that nobody waits for any more
        number, child, started = self.asked, self.child, time.monotonic()
        until = started + (self.limits.answer if patience is None else patience)
        self._send(what, number, *arguments)
        while True:
            with self.news:
                if number in self.answers:
                    return self.answers.pop(number)
                left = until - time.monotonic()
                if left > 0:
                    self.news.wait(min(LOOK, left))
            if left <= 0 and patience is None:
                raise FtHostError(
                    f"the rollout process has not answered ({what}) for {self.limits.answer:g} seconds "
                    f"(rollout_timeout){self.circumstances()}",
                    facts=self._facts(),
                )
            if left <= 0:
                return None
            if patience is not None and self.gone is not None:
                return None
            self._look()
            if self.child is not child or (self.restart_at is not None and what != "generate"):
                return None

    def _drained(self) -> list[Event]:
        with self.news:
            self.left = False
            return [self.told.popleft() for _ in range(len(self.told))]

    # ------------------------------------------------------------ the reader's thread

    def _heard(self, number: int, message: tuple[Any, ...]) -> None:
        if number != self.number:
            return
        kind, *rest = message
        with self.news:
            if kind == "events":
                for event in rest[0]:
                    self._seen(event)
                self.told.extend(rest[0])
            elif kind == "beat":
                self.alive, self.stuck = True, rest[0]
            elif kind == "ready":
                self.ready = True
            elif kind == "have":
                if self.weights is not None:
                    self.weights.forget(rest[0])
            elif kind == "whole":
                self.wants_whole = True
            elif kind == "broken":
                self.error = rest[0]
            elif kind == "gone":
                self.gone = self.gone or GONE
            else:  # paused, flushed, generated
                self.answers[rest[0]] = rest[1] if kind == "generated" else True
            self.news.notify_all()

    def _seen(self, event: Event) -> None:
        if isinstance(event, Started):
            self.under_way.add(event.unit)
        elif isinstance(event, Finished | Failed):
            self.under_way.discard(event.unit)
            if isinstance(event, Finished):
                self.deaths = 0
        elif isinstance(event, Measured):
            if event.tokens or not event.running or self.wet is None:
                self.wet = event.at
            self.dry = event.at - self.wet
