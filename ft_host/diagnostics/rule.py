"""The definition of a rule: data and a few pure functions of a run's facts and metrics. Imports no torch.

A rule names what it reads (`needs`), says when that is bad (`test`), and what to tell the user (`message`, `remedies`).
Windows, shares, hysteresis and muting are the engine's. The other fields are the rule's page (`ft-host explain CODE`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.config.usual import SYMPTOMS
from ft_host.diagnostics.order import LEVELS, OF_STAGE, PLACES

if TYPE_CHECKING:
    from ft_host.diagnostics.view import View

STAGES = ("before", "probe", "train", "after")
SEVERITIES = ("info", "warning", "error")  # in rising order
CODE = re.compile(r"[A-Z]{2,6}\d{3}")

# Names with these prefixes are facts, recorded once or again. All others are metrics, with a value per step.
# "suspect/FIELD" is not recorded: the engine makes it of the config.
FACTS = ("data/", "plan/", "model/", "probe/", "start/", "watch/", "system/", "suspect/")


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """One remedy. `patch`: the config fields to change, {field: new value}; empty where no config field helps.

    `safe`: the patch changes only speed and memory, neither the data nor the objective; or it undoes what the finding
    shows to be harmful. Other patches need a person's decision. `again`: start from the beginning; otherwise the run
    can resume from a checkpoint before the finding. `measured`: the new value follows from what the run has measured,
    so that it may be proposed where a smaller change of the field has been tried without success.
    """

    why: str  # a sentence in the imperative: "Lower learning_rate from 1e-5 to 5e-6"
    patch: dict[str, Any] = field(default_factory=dict)
    safe: bool = False
    again: bool = False
    measured: bool = False
    expected: str = ""  # the expected effect
    locked: dict[str, Any] = field(default_factory=dict)  # the patch that it would have, were no field locked

    @property
    def applicability(self) -> str:
        """As in linters: safe, unsafe, or display, which no program can apply."""
        if not self.patch:
            return "display"
        return "safe" if self.safe else "unsafe"


def no_remedies(view: View) -> list[Remedy]:
    return []


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A problem that a run can detect by itself.

    `needs`: facts and metrics that it reads; without one of them the rule is skipped, by name. "rewards/*/std"
    instantiates the rule for each metric of that form, and `view["rewards/*/std"]` is then the current one. `fields`:
    config fields without which the rule doesn't apply to the run.

    `test` returns True for a bad state, False for a good one, None if that can't be decided yet. A rule on facts alone
    is tested when they are recorded. A rule on metrics is tested at each step that logs them all (at each evaluation,
    if one is an `eval_` metric), and its finding opens once `share` of the last `window` answers are True, with at
    least `least` answers; it is cleared below half of `share`. At stage "after" it is tested once, at the end.
    """

    code: str
    title: str  # the problem in a few words: "Reward variance is near zero"
    stage: str
    needs: tuple[str, ...]
    test: Callable[[View], bool | None]
    message: Callable[[View], str]  # what happens, with the numbers; a sentence or two
    remedies: Callable[[View], list[Remedy]] = no_remedies  # best first
    severity: str = "warning"
    severe: Callable[[View], bool] | None = None  # where True, a warning is an error
    notable: Callable[[View], bool] | None = None  # where True, an info is a warning
    # What the run suffers from, one of `SYMPTOMS` of ft_host.config.usual, or a function that says which: settings that
    # explain it are then the first remedies. "": it is a cause itself, or settings don't explain it.
    symptom: str | Callable[[View], str] = ""
    fields: tuple[str, ...] = ()
    window: int = 50
    share: float = 0.3
    least: int = 20
    level: str = ""  # in the order of causes and consequences (`order.LEVELS`); by default that of its stage
    later: tuple[str, Callable[[View], bool]] | None = None  # (level, when): where it stands instead, if `when` is True
    mutes: tuple[str, ...] = ()  # codes, prefixes of codes, or levels, of findings that follow from this one
    follows_from: tuple[str, ...] = ()  # the reverse: of causes, which mute this rule
    when: str = ""  # the threshold, in words
    why: str = ""  # what it means, and its causes
    remedy: str = ""  # what helps in general; `remedies` is for a given run
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
            problems.append("it needs nothing, so it would never be tested")
        if not 0 < self.share <= 1 or not 1 <= self.least <= self.window:
            problems.append(f"share {self.share}, least {self.least}, window {self.window} don't go together")
        if isinstance(self.symptom, str) and self.symptom not in ("", *SYMPTOMS):
            problems.append(f"symptom {self.symptom!r} is none of {', '.join(SYMPTOMS)}")
        unknown = [level for level in self.levels if level not in LEVELS]
        problems += [f"level {level!r} is none of {', '.join(LEVELS)}" for level in unknown]
        if not unknown and PLACES[self.levels[-1]] < PLACES[self.levels[0]]:
            problems.append(f"level {self.levels[-1]!r} of `later` comes before {self.levels[0]!r}")
        problems += [f"{name} is empty" for name in ("when", "why", "remedy", "source") if not getattr(self, name)]
        if problems:
            raise ValueError(f"rule {self.code}: {'; '.join(problems)}")

    def symptom_of(self, view: View) -> str:
        """The symptom in this state of the run, or ""."""
        return self.symptom if isinstance(self.symptom, str) else self.symptom(view)

    def severity_of(self, view: View) -> str:
        """The severity of a finding in this state of the run."""
        if self.severe is not None and self.severe(view):
            return "error"
        if self.notable is not None and self.notable(view):
            return "warning"
        return self.severity

    @property
    def levels(self) -> tuple[str, ...]:
        """Where it may stand in the order of causes and consequences, the earlier level first."""
        usual = self.level or OF_STAGE.get(self.stage, "policy")
        return (usual,) if self.later is None else (usual, self.later[0])

    def level_of(self, view: View) -> str:
        """The level of a finding in this state of the run."""
        return self.levels[-1] if self.later is not None and self.later[1](view) else self.levels[0]

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


def follows(rule: Rule, cause: Rule, level: str = "", of_cause: str = "") -> bool:
    """Return whether the finding of `rule` follows from that of `cause`: declared by either, and the right way round.

    `level` and `of_cause`: where the two stand in this run; without them, whether it can be in any. A rule that names
    no level may stand anywhere, except before what was known when it could not be. A level that is named means what
    stands strictly later, or earlier.
    """
    levels, causes = (level,) if level else rule.levels, (of_cause,) if of_cause else cause.levels
    if cause.code == rule.code:
        return False
    by_code = chosen(rule.code, list(cause.mutes)) or chosen(cause.code, list(rule.follows_from))
    by_level = {level for level in levels if level in cause.mutes and PLACES[causes[0]] < PLACES[level]}
    by_level |= {level for level in causes if level in rule.follows_from and PLACES[level] < PLACES[levels[-1]]}
    if not by_code:
        return bool(by_level)
    if rule.level and cause.level:
        return PLACES[causes[0]] <= PLACES[levels[-1]]
    return min(STAGES.index(cause.stage), 2) <= min(STAGES.index(rule.stage), 2)  # the end is of the training


def is_fact(name: str) -> bool:
    return name.startswith(FACTS)


def chosen(code: str, codes: list[str]) -> bool:
    """Return whether `code` matches codes and prefixes of codes, as in linters: GRPO, GRPO001, ALL."""
    return any(prefix == "ALL" or code.startswith(prefix) for prefix in codes)
