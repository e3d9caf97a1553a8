"""Prompts that fail: which are tried again, which are set aside, and when the run ends."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError
from ft_host.scheduling.unit import Failed, Unit
from ft_host.types import Row

IN_A_ROW = 8  # prompts set aside by one cause, while none is completed: then it isn't the prompts
SHOWN = 3  # prompts in a message
LONGEST = 30.0  # seconds between two attempts


@dataclass(frozen=True)
class SetAside:
    """A prompt that is learnt from no more. `where`: its place in the data, if it is known; `text`: of the last
    error."""

    number: int
    where: str
    prompt: str  # its beginning
    epoch: int  # from 1
    cause: str
    text: str

    def __str__(self) -> str:
        return f"prompt {self.number} ({self.where or repr(self.prompt)}; {self.cause}): {self.text}"


@dataclass(frozen=True)
class News:
    """What failed since the last rollout: attempts by cause, the last error of each, and the prompts set aside."""

    failed: dict[str, int]
    last: dict[str, str]
    aside: list[SetAside]


class Failures:
    """Each cause has its own retries, with a pause before each that doubles. A prompt that has used them up is set
    aside, so that one that always fails holds up nothing."""

    def __init__(self, config: RolloutConfig):
        self.config = config
        self.failed: Counter[str] = Counter()  # attempts by cause, since `news`
        self.last: dict[str, str] = {}  # the last error of each
        self.aside: list[SetAside] = []
        self.told = 0  # of `aside`, by `news`
        self.in_a_row: Counter[str] = Counter()  # prompts set aside since one was completed, by cause

    def take(self, failed: Failed, unit: Unit) -> str:
        """Return "retry" or "set aside". Raises the error where it ends the run: trying again can't mend it, too many
        prompts of an epoch are set aside, or one after the other by the same cause, or with `max_staleness: 0`, whose
        steps need all their prompts."""
        cause, text = failed.cause, str(failed.error)
        if cause is None:
            raise failed.error
        self.failed[cause] += 1
        self.last[cause] = text
        if cause == "engine":
            # What ends a process fails all prompts that it had under way: one that has got further isn't its cause.
            if unit.tokens > unit.reached:
                unit.tries.pop(cause, None)
            unit.reached = unit.tokens
        tries = unit.tries[cause] = unit.tries.get(cause, 0) + 1
        if tries <= self.config.retries[cause]:
            pause = min(2.0 ** (tries - 1), LONGEST, self.config.rollout_timeout / 4)
            unit.times["again"] = time.time() + pause
            return "retry"
        if self.config.max_staleness == 0:
            raise failed.error
        row, epoch = unit.rows[0], max(1, math.ceil(unit.epoch - 1e-9))
        self.aside.append(SetAside(unit.number, row.get("where", ""), beginning(row), epoch, cause, text))
        self.in_a_row[cause] += 1
        of_epoch = [each for each in self.aside if each.epoch == epoch]
        if len(of_epoch) > self.config.max_set_aside:
            most = f"max_set_aside: {self.config.max_set_aside}"
            raise ending(f"{len(of_epoch)} prompts of epoch {epoch} are set aside ({most})", of_epoch, failed.error)
        if self.in_a_row[cause] >= IN_A_ROW:
            found = [each for each in self.aside if each.cause == cause][-IN_A_ROW:]
            raise ending(
                f"{IN_A_ROW} prompts in a row failed again and again, and none was completed", found, failed.error
            )
        return "set aside"

    def completed(self) -> None:
        """A prompt was completed: something works."""
        self.in_a_row.clear()

    def news(self) -> News:
        """Return what failed since this was called last."""
        found = News(dict(self.failed), dict(self.last), self.aside[self.told :])
        self.told = len(self.aside)
        self.failed.clear()
        self.last.clear()
        return found

    def state(self) -> dict[str, Any]:
        return {"aside": [asdict(each) for each in self.aside], "told": self.told, "in_a_row": dict(self.in_a_row)}

    def restore(self, saved: dict[str, Any]) -> None:
        """Undo of `state`."""
        self.aside = [SetAside(**each) for each in saved["aside"]]
        self.told, self.in_a_row = saved["told"], Counter(saved["in_a_row"])


def of_ranks(saved: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
    """Return this rank's part of what `state` returned on the ranks of a checkpoint; on another number of ranks the
    first has all."""
    if len(saved) == world_size:
        return saved[rank]
    mine = saved if rank == 0 else []
    aside = [each for state in mine for each in state["aside"]]
    return {"aside": aside, "told": len(aside), "in_a_row": {}}


def beginning(row: Row) -> str:
    """Return the first words of a prompt."""
    prompt = row.get("prompt", "")
    text = prompt if isinstance(prompt, str) else prompt[-1].get("content") if prompt else ""
    return " ".join(str(text).split())[:60]


def listed(found: list[SetAside]) -> str:
    """Return prompts that are set aside, the last of them, as a sentence."""
    more = len(found) - SHOWN
    return "; ".join(map(str, found[-SHOWN:])) + (f"; and {more} before" if more > 0 else "")


def ending(what: str, found: list[SetAside], error: FtHostError) -> FtHostError:
    return FtHostError(
        f"{what}: {listed(found)}",
        facts=error.facts | {"watch/set_aside": listed(found), "watch/set_aside_count": len(found)},
    )


def said(ranks: list[News], known: set[str]) -> list[str]:
    """Return what the user is told of failures on all ranks: one line for each cause, one for each prompt set
    aside. A reward that fails is told of once: `known` are the causes that aren't told of again."""
    failed: Counter[str] = Counter()
    for each in ranks:
        failed.update(each.failed)
    for each in ranks:
        failed.subtract(Counter(aside.cause for aside in each.aside))
    last = {cause: text for each in ranks for cause, text in each.last.items()}
    again = [
        f"{'a prompt' if count == 1 else f'{count} attempts at prompts'} failed ({cause}) and "
        f"{'is' if count == 1 else 'are'} tried again: {last[cause]}"
        for cause, count in failed.items()
        if count and cause not in known
    ]
    known |= {"reward"} & failed.keys()
    return again + [f"set aside after all its retries: {aside}" for each in ranks for aside in each.aside]
