"""All prompts on their way, and what may be done with them: how many more may begin, and which a rollout takes.

A prompt starts only if it can be learnt from within the bound. With `ahead` rollouts allowed to begin before the one
that is learnt from has ended, and `quota` prompts a rollout,

    running + ready + taken  <=  (ahead + 1) × quota

holds at any time, where `taken` are those of the rollout that the trainer is at. So at most `quota` prompts can have
tokens that would be too old for the rollout after the next one, and each rollout takes those first: nothing is ever
dropped for being late or long. A group without a signal, and a prompt that is set aside, count no more; others are
drawn in their places.

The bound is no target. A prompt that is done long before its turn has only grown old: with `adapts`, one rollout ahead
of the trainer is begun at first, more once the trainer has waited, and fewer again when what is ready piles up.

The ledger is made of events alone, so that it survives the process in which completions are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ft_host.scheduling.unit import READY, RUNNING, WAITING, Begun, Finished, Progress, Started, Unit

WAITED = 0.05  # the share of a trainer's time that it may wait before more is begun ahead


@dataclass(kw_only=True)
class Ledger:
    """`quota`: prompts of a rollout; `updates`: optimizer steps that one is used for."""

    quota: int
    ahead: int
    updates: int
    in_order: bool = False
    adapts: bool = False
    depth: int = 0  # prompts that may begin now beyond those of a rollout, where it adapts
    units: dict[int, Unit] = field(default_factory=dict)  # by number, in that order
    next_number: int = 0
    taken: int = 0  # prompts of the rollout that is trained on
    left_out: list[Unit] = field(default_factory=list)  # without a signal, since the last rollout
    finished: int = 0  # since the last rollout, with a signal or without

    def __post_init__(self) -> None:
        self.depth = min(self.ahead, 1) * self.quota

    # ------------------------------------------------------------ in

    def adapt(self, waited: float, seconds: float) -> None:
        """After a rollout was taken: begin more ahead if the trainer has waited for a part of these `seconds`, fewer if
        it hasn't and half of another rollout is ready."""
        step = max(1, self.quota // 4)
        if waited > WAITED * seconds:
            self.depth = min(self.ahead * self.quota, self.depth + 2 * step)
        elif 2 * self.count(READY) >= self.quota:
            self.depth = max(min(self.ahead, 1) * self.quota, self.depth - step)

    def room(self) -> int:
        """How many more prompts may begin."""
        ahead = self.depth if self.adapts else self.ahead * self.quota
        return max(0, self.quota + ahead - self.taken - len(self.units))

    def add(self, unit: Unit) -> None:
        self.units[unit.number] = unit

    def begun(self, event: Started) -> None:
        unit = self.units.get(event.unit)
        if unit is not None:
            unit.state = RUNNING
            unit.times.setdefault("started", event.at)

    def progress(self, event: Progress) -> None:
        unit = self.units.get(event.unit)
        if unit is None:
            return
        unit.begun.setdefault(event.key, Begun()).add(event)

    def finish(self, event: Finished) -> None:
        """Take what a prompt came to; one without rows is left out."""
        unit = self.units.get(event.unit)
        if unit is None:
            return
        unit.made, unit.state = event.made, READY
        unit.times["ready"] = event.at
        self.finished += 1
        if not event.made.rows:
            self.left_out.append(self.units.pop(unit.number))

    def set_aside(self, number: int) -> Unit:
        return self.units.pop(number)

    def again(self) -> list[Unit]:
        """Return all that isn't ready, to begin again: what completed them is gone."""
        unfinished = [unit for unit in self.units.values() if unit.state != READY]
        for unit in unfinished:
            unit.state = WAITING
        return unfinished

    # ------------------------------------------------------------ out

    def due(self, version: int) -> list[Unit]:
        """Return those that the next rollout must take: `version` is that of the weights, and one rollout later they
        would be too old."""
        limit = version - (self.ahead - 1) * self.updates
        return [unit for unit in self.units.values() if unit.oldest is not None and unit.oldest < limit]

    def choose(self, version: int, *, more: bool) -> list[Unit] | None:
        """Return the prompts of the next rollout, in the order of their numbers; None while it has to wait. `more`:
        whether others may still come. An empty list: there is none left."""
        ready = [unit for unit in self.units.values() if unit.state == READY]
        due = {unit.number for unit in self.due(version)}
        if self.in_order:
            wanted = due | set(sorted(self.units)[: self.quota])
        else:
            early = sorted(ready, key=lambda unit: (unit.number not in due, unit.times["ready"], unit.number))
            wanted = due | {unit.number for unit in early[: self.quota]}
        chosen = [self.units[number] for number in sorted(wanted)]
        if any(unit.state != READY for unit in chosen):
            return None
        if len(chosen) < self.quota and (more or len(ready) < len(self.units)):
            return None
        return chosen

    def take(self, chosen: list[Unit]) -> list[Unit]:
        """Remove prompts that are learnt from now; return them with those that were left out meanwhile, whose metrics
        belong to this rollout."""
        for unit in chosen:
            del self.units[unit.number]
        gone, self.left_out = self.left_out, []
        self.taken, self.finished = len(chosen), 0
        return sorted([*chosen, *gone], key=lambda unit: unit.number)

    # ------------------------------------------------------------ kept

    def count(self, state: str) -> int:
        return sum(unit.state == state for unit in self.units.values())

    def state(self, back: list[Unit]) -> dict[str, Any]:
        """Return all units, JSON-able, with those that were taken and are to be taken again."""
        learnt = [unit for unit in back if unit.made is not None and unit.made.rows]
        units = sorted([*self.units.values(), *learnt], key=lambda unit: unit.number)
        left_out = [*self.left_out, *(unit for unit in back if unit not in learnt)]
        return {
            "units": [unit.as_json() for unit in units],
            "left_out": [unit.as_json() for unit in left_out],
            "quota": self.quota,
            "next_number": self.next_number,
            "finished": self.finished,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo of `state`. What was running has to be begun again."""
        self.units = {each["number"]: Unit.of(each) for each in saved["units"]}
        self.left_out = [Unit.of(each) for each in saved["left_out"]]
        self.next_number, self.finished = saved["next_number"], saved["finished"]
        self.again()
