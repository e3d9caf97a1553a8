"""What trainer and rollouts do when: timeline.jsonl of a run's folder, which the report draws.

A line is a span of one side, {"side", "what", "start", "end", "step"}, in seconds since the epoch and with the step
that was being made; of the side "queue" it holds how many groups were ready, running and waiting. Spans that follow
each other and are of one kind are one line. Where the file has grown to LONGEST lines, all but the newest are made
coarser: a long run has a file of the same size, with the last minutes in full. Lines aren't in order of time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ft_host.rundir.folder import RunFolder, write_text
from ft_host.scheduling.unit import Event, Measured
from ft_host.util.jsonl import json_line

FILE = "timeline.jsonl"
TRAINER, ROLLOUTS, QUEUE = "trainer", "rollouts", "queue"
# What `Run.add_time` is told, as the trainer's activities. What it isn't told of is training.
ACTIVITIES = {
    "rollout_wait": "waiting",
    "annotation": "annotating",
    "measuring": "annotating",
    "weight_sync": "publishing",
    "evaluation": "evaluating",
    "save": "saving",
}
TRAINING, STARTING = "training", "starting"
SHORT = 0.001  # seconds below which a span is none
LONGEST, KEPT, STRETCHES = 20_000, 5_000, 300  # lines; of them in full; stretches that the others are made into
GAP = 0.05  # seconds between two spans that are still one
OFTEN = 1.0  # seconds between two lines of the queue
PAUSE = 60.0  # seconds without a line after which the run had stopped
FIXED = {"side", "start", "end", "step"}


class Timeline:
    """Writes the file, where `folder` is given; other ranks than the main one have none."""

    def __init__(self, folder: RunFolder | None, step: int, at: float | None = None):
        self.folder = folder
        self.step = step + 1  # that is being made, after `step` others: a run that goes on makes it again
        self.open: dict[str, dict[str, Any]] = {}  # the last span of each side, not yet written: it may go on
        self.reached = time.time() if at is None else at  # the trainer's last activity ended then
        self.untold = STARTING  # what the trainer does where nothing is told
        self.told: float | None = None  # the rollouts' last measurement
        self.queued = 0.0  # when the queue was written
        self.lines = len(folder.read(FILE)) if folder is not None else 0

    def ended(self, what: str, seconds: float, at: float | None = None) -> None:
        """An activity of the trainer has ended, by its name in `Run.add_time`. What lies before it was training, or the
        start of what samples before the first rollout."""
        activity = ACTIVITIES.get(what)
        if activity is None:
            return
        end = time.time() if at is None else at
        start = max(self.reached, end - seconds)
        self.add(TRAINER, self.untold, self.reached, start)
        self.add(TRAINER, activity, start, end)
        if activity == ACTIVITIES["rollout_wait"]:
            self.untold = TRAINING
        self.reached = max(self.reached, end)

    def stepped(self, step: int, at: float | None = None) -> None:
        """So many optimizer steps are done; spans from here on belong to the next."""
        now = time.time() if at is None else at
        self.add(TRAINER, self.untold, self.reached, now)
        self.reached = max(self.reached, now)
        self.step = step + 1

    def seen(self, event: Event) -> None:
        """An event of the producer."""
        if not isinstance(event, Measured):
            return
        start = event.at - sum(event.seconds.values())
        if self.told is not None:
            start = max(start, self.told)
        for what, seconds in event.seconds.items():
            end = min(start + seconds, event.at)
            self.add(ROLLOUTS, what, start, end)
            start = end
        self.told = event.at

    def depth(self, ready: int, running: int, waiting: int, at: float | None = None) -> None:
        """How many groups there are in each state now."""
        now = time.time() if at is None else at
        if now - self.queued < OFTEN:
            return
        self.queued = now
        self.write({"side": QUEUE, "start": now, "end": now, "ready": ready, "running": running, "waiting": waiting})

    def add(self, side: str, what: str, start: float, end: float) -> None:
        """Add a span; one of the same kind goes on where the last ended."""
        if self.folder is None or end - start < SHORT:
            return
        last = self.open.get(side)
        if last is not None and last["what"] == what and start - last["end"] <= GAP:
            last["end"] = end
            return
        if last is not None:
            self.write(last)
        self.open[side] = {"side": side, "what": what, "start": start, "end": end, "step": self.step}

    def write(self, line: dict[str, Any]) -> None:
        if self.folder is None:
            return
        line = {"step": self.step} | line
        self.folder.append(FILE, line | {"start": round(line["start"], 3), "end": round(line["end"], 3)})
        self.lines += 1
        if self.lines >= LONGEST:
            lines = self.folder.read(FILE)
            lines = [*coarser(lines[:-KEPT], STRETCHES), *lines[-KEPT:]]
            write_text(self.folder.path / FILE, "".join(map(json_line, lines)))
            self.lines = len(lines)

    def flush(self) -> None:
        """Write what is still open: before a checkpoint, and at the end."""
        for line in self.open.values():
            self.write(line)
        self.open.clear()


def coarser(lines: list[dict[str, Any]], stretches: int) -> list[dict[str, Any]]:
    """Return the same time in about so many stretches of as many lines each. In each a side does each thing once, for
    as long in all as it did, and in the order in which it began; the queue has the mean. No stretch goes over a pause
    of the run."""
    size, pooled = max(1, len(lines) // stretches), []
    stretch: list[dict[str, Any]] = []
    for line in lines:
        if stretch and (len(stretch) >= size or line["start"] - max(each["end"] for each in stretch) > PAUSE):
            pooled += _pooled(stretch)
            stretch = []
        stretch.append(line)
    return [*pooled, *_pooled(stretch)]


def _pooled(lines: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for side in dict.fromkeys(line["side"] for line in lines):
        mine = [line for line in lines if line["side"] == side]
        if side == QUEUE:
            means = {name: round(sum(line[name] for line in mine) / len(mine), 2) for name in mine[0].keys() - FIXED}
            yield mine[0] | means
            continue
        seconds: dict[str, float] = {}
        for line in mine:
            seconds[line["what"]] = seconds.get(line["what"], 0.0) + line["end"] - line["start"]
        # What lies between spans stays between the stretches.
        start = mine[0]["start"]
        for what, took in seconds.items():
            end = round(start + took, 3)
            yield {"side": side, "what": what, "start": start, "end": end, "step": mine[-1]["step"]}
            start = end
