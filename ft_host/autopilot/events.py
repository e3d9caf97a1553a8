"""Reads the events of a running attempt, and words them for the user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft_host.rundir import format as fmt
from ft_host.rundir.lines import number_of

if TYPE_CHECKING:
    from ft_host.autopilot.attempts import Attempt


def introduced(attempt: Attempt, budget: int) -> str:
    change = attempt.change
    if change is None:
        return f"attempt 1 of at most {budget}: the run file as it is"
    patch = ", ".join(f"{name} {fmt.value(old)} -> {fmt.value(new)}" for name, (old, new) in change.patch.items())
    start = f"from {change.checkpoint}" if change.checkpoint else "from the beginning"
    return f"attempt {attempt.number} of at most {budget}, {start}: {patch} ({change.finding}: {change.remedy})"


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
