"""What a rule is: data and a few pure functions of what a run has told about itself. Imports no torch.

A rule names what it reads (`needs`), says when that is bad (`test`), and what to tell the user (`message`, `remedies`).
Windows, shares, hysteresis and muting are the engine's. The other fields are the rule's page (`ft-host explain CODE`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft_host.diagnostics.view import View

STAGES = ("before", "probe", "train", "after")
SEVERITIES = ("info", "warning", "error")  # in rising order
CODE = re.compile(r"[A-Z]{2,6}\d{3}")

# Names that begin so are facts: told once, or anew. All others are metrics, with a value for a step.
FACTS = ("data/", "plan/", "model/", "probe/", "start/", "watch/", "system/")


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One way out. `patch`: the config fields to change, {field: new value}; empty where no config field helps.

    `safe`: the patch changes neither what is learnt from nor what is learnt, only speed and memory, or it takes back
    what the finding shows to be harmful; a person may want to look at others first. `again`: start from the beginning;
    else the run can go on from a checkpoint from before the finding.
    """

    why: str  # a sentence in the imperative: "Lower learning_rate from 1e-5 to 5e-6"
    patch: dict[str, Any] = field(default_factory=dict)
    safe: bool = False
    again: bool = False
    expected: str = ""  # what should be seen then

    @property
    def applicability(self) -> str:
        """As linters say it: safe, unsafe, or display, which no program can apply."""
        if not self.patch:
            return "display"
        return "safe" if self.safe else "unsafe"


def no_remedies(view: View) -> list[Remedy]:
    return []


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A trouble that a run can recognise by itself.

    `needs`: facts and metrics that it reads; where one isn't there the rule is skipped, by name. "rewards/*/std" makes
    the rule one for each metric of that form, and `view["rewards/*/std"]` is then the one that is looked at. `fields`:
    config fields without which the rule is not about this run.

    `test` is True where it looks bad, False where it doesn't, None where that can't be told yet. Of facts alone it is
    asked when they are told. Of metrics it is asked at each step that logs them all (at each evaluation, where one is
    an `eval_` metric), and the finding opens once `share` of the last `window` answers are True, of `least` at the
    least; it is cleared below half of `share`. At stage "after" it is asked once, at the end.
    """

    code: str
    title: str  # what is the matter, in a few words: "Reward variance is near zero"
    stage: str
    needs: tuple[str, ...]
    test: Callable[[View], bool | None]
    message: Callable[[View], str]  # what is happening, with the numbers; a sentence or two
    remedies: Callable[[View], list[Remedy]] = no_remedies  # the best first
    severity: str = "warning"
    severe: Callable[[View], bool] | None = None  # where True, a warning is an error
    fields: tuple[str, ...] = ()
    window: int = 50
    share: float = 0.3
    least: int = 20
    mutes: tuple[str, ...] = ()  # codes, or beginnings of codes, of what follows from this
    follows_from: tuple[str, ...] = ()  # the same from the other side: codes of causes, which mute this rule
    when: str = ""  # the threshold, in words
    why: str = ""  # what it means, and what it comes from
    remedy: str = ""  # what helps, in general; `remedies` says it of a run
    source: str = ""  # paper, project, or "own judgement"
    family: str = ""  # the page that rules share which several methods have, each under a code of its own

    def __post_init__(self) -> None:
        problems = []
        if not CODE.fullmatch(self.code):
            problems.append(f"code {self.code!r} isn't letters and three digits, such as GRPO001")
        if self.stage not in STAGES:
            problems.append(f"stage {self.stage!r} is none of {', '.join(STAGES)}")
        if self.severity not in SEVERITIES:
            problems.append(f"severity {self.severity!r} is none of {', '.join(SEVERITIES)}")
        if not self.needs:
            problems.append("it needs nothing, so that it would never be asked")
        if not 0 < self.share <= 1 or not 1 <= self.least <= self.window:
            problems.append(f"share {self.share}, least {self.least}, window {self.window} don't go together")
        problems += [f"{name} is empty" for name in ("when", "why", "remedy", "source") if not getattr(self, name)]
        if problems:
            raise ValueError(f"rule {self.code}: {'; '.join(problems)}")

    @property
    def page(self) -> str:
        """Where it is described, in the host's repository."""
        return f"docs/rules/{self.family or self.code}.md"

    @property
    def of_facts(self) -> bool:
        """Whether it reads no metric."""
        return all(is_fact(name) for name in self.needs)

    @property
    def of_evaluations(self) -> bool:
        return any(name.startswith("eval_") for name in self.needs)


def follows(rule: Rule, cause: Rule) -> bool:
    """Whether what `rule` finds follows from what `cause` finds, as either of the two says."""
    return cause.code != rule.code and (
        chosen(rule.code, list(cause.mutes)) or chosen(cause.code, list(rule.follows_from))
    )


def is_fact(name: str) -> bool:
    return name.startswith(FACTS)


def chosen(code: str, codes: list[str]) -> bool:
    """Whether `code` is among codes and beginnings of codes, as linters take them: GRPO, GRPO001, ALL."""
    return any(each == "ALL" or code.startswith(each) for each in codes)
