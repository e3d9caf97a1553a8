"""A run's findings on its page: a section near the top, and marks on the curves at the steps of each finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_host.report.markup import Markup, el, join
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord

RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Mark:
    """A range of steps on a chart, with the rule's code and the severity."""

    code: str
    severity: str
    first: int
    last: int


def open_findings(record: RunRecord) -> list[dict[str, Any]]:
    return [finding for finding in record.findings.values() if finding["state"] == "open"]


def counted(findings: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of findings of finding severity that occurs."""
    severities = [finding["severity"] for finding in findings]
    return {severity: severities.count(severity) for severity in RANK if severity in severities}


def marks(record: RunRecord, metric: str) -> list[Mark]:
    """Return marks for the findings that rest on this metric, in training or held out, except muted findings."""
    return [
        Mark(finding["code"], _severity(finding), finding["first_step"], finding["last_step"])
        for finding in record.findings.values()
        if finding["state"] != "muted"
        and {metric, f"eval_{metric}"} & {one.get("metric") for one in finding["evidence"]}
    ]


def section(record: RunRecord) -> Markup | None:
    """Return all findings in their final state: open ones, then cleared ones, then, folded, those that follow from
    another.
    """
    findings = sorted(
        record.findings.values(), key=lambda finding: (RANK.get(finding["severity"], 3), finding["first_step"])
    )
    shown = [_card(finding) for state in ("open", "cleared") for finding in findings if finding["state"] == state]
    muted = [_card(finding) for finding in findings if finding["state"] == "muted"]
    if not findings:
        return None
    folded = el("details", el("summary", f"{len(muted)} that follow from another"), *muted) if muted else None
    return join(*shown, folded)


def _severity(finding: dict[str, Any]) -> str:
    """Return the severity if the page has a colour for it, else a default."""
    return finding["severity"] if finding["severity"] in RANK else "info"


def _card(finding: dict[str, Any]) -> Markup:
    severity = _severity(finding)
    state = {"cleared": "cleared", "muted": f"follows from {finding.get('muted_by')}"}.get(finding["state"])
    first, last = finding["first_step"], finding["last_step"]
    where = f"at step {last:,}" if first == last else f"steps {first:,} to {last:,}"
    head = el(
        "div",
        el(f"span.chip.{severity}", severity),
        " ",
        el("b", f"{finding['fingerprint']}: {finding['title']}"),
        el("small", ", ".join(part for part in (where, state) if part)),
    )
    evidence = [el("li", el("code", str(item.get("metric"))), f" {_evidence(item)}") for item in finding["evidence"]]
    remedies = [el("li", str(item.get("why")), _patch(item)) for item in finding["remedies"]]
    return el(
        f"div.finding.{severity}" + ("" if finding["state"] == "open" else ".over"),
        head,
        el("p", finding["message"]),
        el("p.soft", finding["why"]),
        el("ul.evidence", *evidence) if evidence else None,
        el("ol", *remedies) if remedies else None,
    )


def _evidence(item: dict[str, Any]) -> str:
    beside = [f"{name} {_value(item[name])}" for name in ("mean", "baseline") if item.get(name) is not None]
    return _value(item.get("value")) + (f" ({', '.join(beside)})" if beside else "")


def _value(value: Any) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return fmt.number(value) if number else fmt.value(value)


def _patch(remedy: dict[str, Any]) -> Markup | None:
    changes = [
        f"{change['path'].removeprefix('/')}: {fmt.yaml_value(change['value'])}" for change in remedy.get("patch", ())
    ]
    if not changes:
        return None
    note = remedy.get("applicability", "") + (", from the beginning" if remedy.get("from_start") else "")
    return join(el("pre.patch", "\n".join(changes)), el("span.soft", note))
