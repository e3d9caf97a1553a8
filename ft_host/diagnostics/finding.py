"""A rule's finding in a run, and its format: a line of findings.jsonl for each change of its state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ft_host.diagnostics.order import OF_STAGE
from ft_host.diagnostics.rule import SEVERITIES, Remedy
from ft_host.util.jsonl import finite_or_word

SCHEMA = "ft-host.finding/1"
STATES = ("open", "cleared", "muted")


@dataclass(kw_only=True)
class Finding:
    """A problem, once for each cause. `state`: open, cleared (it no longer holds), or muted (it follows
    from another).
    """

    code: str
    title: str
    severity: str
    stage: str
    message: str
    why: str
    remedies: list[Remedy]
    evidence: list[dict[str, Any]]
    cause: str | None  # for a rule about several metrics: which one
    plugin: str  # distribution and version of the rule
    state: str = "open"
    step: int = 0  # the step at which this was written
    opened: int = 0  # the step at which it was first written
    first_step: int = 0
    last_step: int = 0
    count: int = 1  # steps with a bad answer
    window: int = 1  # the number of answers considered
    share: float = 1.0  # the share of bad ones among them
    muted_by: str | None = None
    page: str = ""  # of the rule; empty: it has its own, by its code
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # field: (from, to) of the patches
    level: str = OF_STAGE["train"]  # in the order of causes and consequences
    offered: list[Remedy] = field(default_factory=list)  # all remedies; `remedies` are contrary to no other finding's
    alone: bool = False  # of a muted one: nothing mutes it any more

    def __post_init__(self) -> None:
        self.offered = self.offered or list(self.remedies)

    @property
    def fingerprint(self) -> str:
        return self.code if self.cause is None else f"{self.code}:{self.cause}"

    def line(self) -> str:
        """Return a line for a terminal: "Warning GRPO001: ... Try ..."."""
        remedy = f" {self.remedies[0].why}." if self.remedies else ""
        return f"{self.severity.capitalize()} {self.code}: {self.message}{remedy}"

    def as_dict(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the format of findings.jsonl; docs/findings.schema.json describes it. Patches are relative to
        `config`.
        """
        return {
            "schema": SCHEMA,
            "code": self.code,
            "title": self.title,
            "severity": self.severity,
            "stage": self.stage,
            "state": self.state,
            "message": self.message,
            "why": self.why,
            "evidence": [{name: finite_or_word(value) for name, value in each.items()} for each in self.evidence],
            "remedies": [
                {
                    "rank": rank,
                    "why": remedy.why,
                    "applicability": remedy.applicability,
                    "patch": [
                        {
                            "op": "replace",
                            "path": f"/{name}",
                            "from": finite_or_word(config.get(name)),
                            "value": finite_or_word(value),
                        }
                        for name, value in remedy.patch.items()
                    ],
                    "from_start": remedy.again,
                    "measured": remedy.measured,
                    "expected": remedy.expected,
                }
                for rank, remedy in enumerate(self.remedies, 1)
            ],
            "cause": self.cause,
            "step": self.step,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "count": self.count,
            "window": self.window,
            "share": round(self.share, 4),
            "muted_by": self.muted_by,
            "plugin": self.plugin,
            "fingerprint": self.fingerprint,
            "page": self.page or f"docs/rules/{self.code}.md",
        }


def at_least(severity: str, limit: str) -> bool:
    return SEVERITIES.index(severity) >= SEVERITIES.index(limit)
