"""Reads the events of a running attempt, and words them for the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft_host.autopilot.lineage import AS_GOOD, BETTER, NO_BETTER
from ft_host.rundir import format as fmt
from ft_host.rundir.lines import number_of

if TYPE_CHECKING:
    from ft_host.autopilot.lineage import Attempt, Change


def changed(change: Change) -> str:
    return ", ".join(f"{name} {fmt.value(old)} -> {fmt.value(new)}" for name, (old, new) in change.patch.items())


def introduced(attempt: Attempt, budget: int) -> str:
    change = attempt.change
    if change is None:
        return f"attempt 1 of at most {budget}: the run file as it is"
    start = f"from {change.checkpoint}" if change.checkpoint else "from the beginning"
    return (
        f"attempt {attempt.number} of at most {budget}, {start}: {changed(change)} ({change.finding}: {change.remedy})"
    )


def judged(attempt: Attempt) -> str:
    """Say whether an attempt is better than the one that it comes from, and by which figure."""
    verdict = attempt.verdict
    if verdict is None or attempt.base is None:
        return ""
    if verdict.metric is not None and verdict.before is not None and verdict.after is not None:
        by = f" by {verdict.metric}: {fmt.number(verdict.before)} -> {fmt.number(verdict.after)}"
    else:
        by = "" if attempt.finished else f": it was {attempt.status}"
    said = {
        BETTER: "is better than",
        AS_GOOD: "has lost the finding, and is as good as",
        NO_BETTER: "is no better than",
    }
    back = "" if verdict.adopted else f"; back to attempt {attempt.base}"
    return f"attempt {attempt.number} {said[verdict.kind]} attempt {attempt.base}{by}{back}"


def events_of(stdout: Any) -> Iterator[dict[str, Any]]:
    """Yield the events of a run, which are lines of JSON; other output is ignored, which a reward may print."""
    for line in stdout:
        try:
            event = json.loads(line) if line.startswith("{") else None
        except ValueError:
            continue
        if isinstance(event, dict) and "kind" in event:
            yield event


def follow(event: dict[str, Any], findings: dict[str, dict[str, Any]], say: Callable[[str], None]) -> None:
    if event["kind"] == "finding":
        findings[event["fingerprint"]] = event
        say(f"  step {event['step']}: {event['severity']} {event['code']}: {event['message']}")
    elif event["kind"] == "eval":
        shown = [
            f"{name} {fmt.number(number_of(value))}"
            for name, value in event.items()
            if name.startswith("eval_") and fmt.better(name)
        ]
        say(f"  step {event['step']}: {'  '.join(shown)}")
