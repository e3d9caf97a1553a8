"""What a run's diagnostics found, on its page: a section near the top, and marks on the curves where it happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_host.report.markup import Markup, el, join
from ft_host.rundir import format as fmt
from ft_host.rundir.record import RunRecord

RANK = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Mark:
    """A stretch of steps on a chart, with what it is called and how grave it is."""

    code: str
    severity: str
    first: int
    last: int


def open_findings(record: RunRecord) -> list[dict[str, Any]]:
    return [each for each in record.findings.values() if each["state"] == "open"]


def counted(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many there are of each severity, of those that there are."""
    severities = [each["severity"] for each in found]
    return {severity: severities.count(severity) for severity in RANK if severity in severities}


def marks(record: RunRecord, metric: str) -> list[Mark]:
    """Of the findings that rest on this metric, trained or held out. One that follows from another isn't marked."""
    return [
        Mark(each["code"], _severity(each), each["first_step"], each["last_step"])
        for each in record.findings.values()
        if each["state"] != "muted" and {metric, f"eval_{metric}"} & {one.get("metric") for one in each["evidence"]}
    ]


def section(record: RunRecord) -> Markup | None:
    """All findings as they ended: the open ones, then those that have passed, then, folded, those that follow from
    another."""
    found = sorted(record.findings.values(), key=lambda each: (RANK.get(each["severity"], 3), each["first_step"]))
    shown = [_card(each) for state in ("open", "cleared") for each in found if each["state"] == state]
    muted = [_card(each) for each in found if each["state"] == "muted"]
    if not found:
        return None
    folded = el("details", el("summary", f"{len(muted)} that follow from another"), *muted) if muted else None
    return join(*shown, folded)


def _severity(finding: dict[str, Any]) -> str:
    """One that the page has a colour for."""
    return finding["severity"] if finding["severity"] in RANK else "info"


def _card(finding: dict[str, Any]) -> Markup:
    severity = _severity(finding)
    state = {"cleared": "has passed", "muted": f"follows from {finding.get('muted_by')}"}.get(finding["state"])
    first, last = finding["first_step"], finding["last_step"]
    where = f"at step {last:,}" if first == last else f"steps {first:,} to {last:,}"
    head = el(
        "div",
        el(f"span.chip.{severity}", severity),
        " ",
        el("b", f"{finding['fingerprint']}: {finding['title']}"),
        el("small", ", ".join(part for part in (where, state) if part)),
    )
    evidence = [el("li", el("code", str(each.get("metric"))), f" {_evidence(each)}") for each in finding["evidence"]]
    remedies = [el("li", str(each.get("why")), _patch(each)) for each in finding["remedies"]]
    return el(
        f"div.finding.{severity}" + ("" if finding["state"] == "open" else ".over"),
        head,
        el("p", finding["message"]),
        el("p.soft", finding["why"]),
        el("ul.evidence", *evidence) if evidence else None,
        el("ol", *remedies) if remedies else None,
    )


def _evidence(each: dict[str, Any]) -> str:
    beside = [f"{name} {_value(each[name])}" for name in ("mean", "baseline") if each.get(name) is not None]
    return _value(each.get("value")) + (f" ({', '.join(beside)})" if beside else "")


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
