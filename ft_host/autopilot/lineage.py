"""An attempt, and what was changed for it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Ignored when configs are compared.
BOOKKEEPING = ("output_dir", "parent_run", "resume_from_checkpoint", "stop_on", "save_steps", "save_total_limit")

BETTER, AS_GOOD, NO_BETTER = "better", "as good", "no better"


@dataclass(kw_only=True)
class Change:
    """The change made for a finding."""

    finding: str  # its fingerprint
    message: str
    remedy: str
    patch: dict[str, list[Any]]  # field: [from, to]
    checkpoint: str | None  # where it resumed; None: from the beginning
    safe: bool = False  # of speed or memory alone

    @property
    def code(self) -> str:
        return self.finding.partition(":")[0]


@dataclass(kw_only=True)
class Verdict:
    """What an attempt brought, beside the one that it comes from: `kind` is "better", "as good" (and the finding that
    it was for is gone), or "no better". `metric`: by which figure; None where none means the same in both."""

    kind: str
    metric: str | None = None
    before: float | None = None
    after: float | None = None

    @property
    def adopted(self) -> bool:
        return self.kind in (BETTER, AS_GOOD)


@dataclass(kw_only=True)
class Attempt:
    """One run of the lineage. `values`: the fields that aren't at their defaults."""

    number: int
    folder: str
    values: dict[str, Any]
    change: Change | None  # relative to the attempt that it comes from
    base: int | None = None  # the number of that one
    status: str = "running"
    exit_code: int | None = None
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # held-out, at the end; the most important first
    scale: dict[str, float] = field(default_factory=dict)  # the fields that figures are multiples of, {"beta": 0.1}
    training: dict[str, float] = field(default_factory=dict)  # of the steps: the mean of the last tenth
    findings: list[dict[str, Any]] = field(default_factory=list)  # in their final state, as in findings.jsonl
    verdict: Verdict | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def open_findings(self) -> list[dict[str, Any]]:
        """The warnings and errors that are open, the worst first; what is for speed or memory alone comes last."""
        found = [each for each in self.findings if each["state"] == "open" and each["severity"] != "info"]
        return sorted(found, key=lambda each: (each["severity"] != "error", _is_of_speed(each), each["first_step"]))

    def has_open(self, code: str) -> bool:
        return any(finding["code"] == code for finding in self.open_findings())

    def has_errors(self) -> bool:
        return any(finding["severity"] == "error" for finding in self.open_findings())


def _is_of_speed(finding: dict[str, Any]) -> bool:
    patches = [remedy for remedy in finding["remedies"] if remedy["patch"]]
    return bool(patches) and patches[0]["applicability"] == "safe"


def compared(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in BOOKKEEPING}
