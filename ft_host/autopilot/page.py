"""The page of an autopilot: the attempts, their reasons, and their results."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.report.compare import pictures
from ft_host.report.markup import Markup, el, join, table
from ft_host.report.page import page, write_page
from ft_host.report.parts import status_pill
from ft_host.rundir import format as fmt

if TYPE_CHECKING:
    from ft_host.autopilot.attempts import Autopilot
    from ft_host.autopilot.lineage import Attempt


def write_flight(flight: Autopilot, path: Path) -> Path:
    return write_page(path, flight_page(flight))


def flight_page(flight: Autopilot) -> str:
    """Return the whole HTML document."""
    records = {attempt.number: record for attempt in flight.attempts if (record := flight.record(attempt)) is not None}
    now = fmt.moment(datetime.now().astimezone())
    shown = [number for number, record in records.items() if record.has_metrics][-8:]
    curves = (
        pictures([records[number] for number in shown], [f"attempt {number}" for number in shown]) if shown else None
    )
    return page(
        f"autopilot · {flight.folder.name}",
        el(
            "header",
            el("p.eyebrow", "ft-host · autopilot"),
            el("h1", flight.folder.name),
            el("p.lead", *_result(flight)),
        ),
        el("section", el("h2", "What was tried"), _attempts(flight, records)),
        _cleared(flight),
        *(_change(attempt) for attempt in flight.attempts if attempt.change is not None),
        curves,
        el("footer", f"Made by ft-host on {now} from {flight.folder}"),
    )


def _result(flight: Autopilot) -> list[str | Markup]:
    count = f"{len(flight.attempts)} of at most {flight.budget} attempts. "
    if flight.best is None:
        return [count, "None of them finished."]
    best = flight.attempts[flight.best - 1]
    value = f" with {flight.metric} {fmt.number(best.metrics[flight.metric])}" if flight.metric else ""
    return [count, "Best: ", el("b", f"attempt {best.number}"), value, ", in ", el("code", best.folder), "."]


def _attempts(flight: Autopilot, records: dict) -> Markup:
    names = list(dict.fromkeys(name for attempt in flight.attempts for name in attempt.metrics))[:3]
    rows = []
    for attempt in flight.attempts:
        codes = [finding["code"] for finding in attempt.findings if finding["state"] == "open"]
        ended = status_pill(records[attempt.number]) if attempt.number in records else attempt.status
        metrics = [fmt.number(attempt.metrics[name]) if name in attempt.metrics else "" for name in names]
        best = " (best)" if attempt.number == flight.best else ""
        rows.append(
            [f"{attempt.number}{best}", _patch(attempt), ended, f"{attempt.steps:,}", *metrics, ", ".join(codes)]
        )
    head = ["Attempt", "Changed", "Ended", "Steps", *names, "Open findings"]
    return table(head, rows, numbers=set(range(3, 4 + len(names))))


def _patch(attempt: Attempt) -> str | Markup:
    if attempt.change is None:
        return "the run file as it is"
    changed = [f"{name}: {fmt.value(old)} → {fmt.value(new)}" for name, (old, new) in attempt.change.patch.items()]
    return el("code", ", ".join(changed))


def _cleared(flight: Autopilot) -> Markup | None:
    """What experiments have shown not to be the cause."""
    if not flight.cleared:
        return None
    rows = [
        [_patch(attempt), attempt.change.finding, f"attempt {attempt.base} → {attempt.number}", _figures(attempt)]
        for attempt in flight.cleared
        if attempt.change is not None
    ]
    return el(
        "section",
        el("h2", "What was cleared"),
        el("p", "These changes were tried, and the run was no better with them."),
        table(["Changed", "For", "Tried in", "Figure"], rows),
    )


def _figures(attempt: Attempt) -> str:
    verdict = attempt.verdict
    if verdict is None or verdict.metric is None:
        return attempt.status
    return f"{verdict.metric} {fmt.number(verdict.before)} → {fmt.number(verdict.after)}"


def _change(attempt: Attempt) -> Markup:
    change = attempt.change
    start = join("from ", el("code", change.checkpoint)) if change.checkpoint else "from the beginning"
    return el(
        "section",
        el("h3", f"Attempt {attempt.number}, from attempt {attempt.base or attempt.number - 1}, for {change.finding}"),
        el("p", change.message),
        el("p", change.remedy, "; ", start, "."),
    )
