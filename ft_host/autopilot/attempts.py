"""Repeats a run file: each attempt is the best one so far with a remedy for one of its findings.

    OUT/attempt-1/ ...    run folders; each names its parent run
    OUT/attempt-1.yaml    the run file
    OUT/autopilot.json    the lineage: the changes, their reasons and results
    OUT/report.html       the same for people

An attempt is `ft-host train` in a separate process. The first one goes to its end, so that the others have something
to be better than; a later one is stopped at an error that one before it had, too. Whichever figure of held-out rows is
best decides. Data, models, rewards and fields that the user locked are never changed, except that a reference may be
left out. Imports no torch.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft_host.autopilot.choosing import PROTECTED, candidates, first_step_of
from ft_host.autopilot.events import events_of, follow, introduced, judged
from ft_host.autopilot.judging import best_of, figures, judge, metric_of, training
from ft_host.autopilot.lineage import Attempt, Change, Verdict
from ft_host.diagnostics.patch import run_file
from ft_host.diagnostics.resolved import Accepts
from ft_host.errors import StoppedByFinding
from ft_host.report import RunRecord, RunUnreadable, read_run
from ft_host.rundir import format as fmt
from ft_host.rundir.compared import scale_of
from ft_host.rundir.folder import write_json
from ft_host.rundir.lines import read_json_lines

__all__ = ["PROTECTED", "Attempt", "Autopilot", "Change", "Verdict", "is_good"]

SLACK = 0.15  # a checkpoint may be worse than the best by this share: steps vary
CHECKPOINTS = 10  # per attempt, where the user hasn't set an interval
INTERRUPTED = 130


@dataclass(kw_only=True)
class Autopilot:
    """All attempts, and which of them is best."""

    folder: Path
    method: str  # as `ft-host train` takes it
    config: dict[str, Any]  # all fields of the first attempt
    budget: int
    locked: list[str]
    attempts: list[Attempt] = field(default_factory=list)
    best: int | None = None  # number of the best finished attempt
    metric: str | None = None  # the metric that decides it
    declared: dict[str, str] = field(default_factory=dict)  # the method's `metric_directions`
    accepts: Accepts = lambda patch: True  # whether the config takes a patch: {field: value}
    outcomes: frozenset[str] = frozenset()  # codes of rules that say what a run came to

    def run(self, values: dict[str, Any], say: Callable[[str], None]) -> None:
        """Run one attempt after another, at most `budget`: each comes from the best one before it."""
        base = self._attempt(values, None, None, say)
        while base.exit_code != INTERRUPTED and len(self.attempts) < self.budget:
            following = self.choose(base)
            if following is None:
                break
            attempt = self._attempt(*following, base, say)
            if attempt.exit_code == INTERRUPTED:
                return
            if attempt.verdict is not None and attempt.verdict.adopted:
                base = attempt

    # -- one attempt

    def _attempt(
        self, values: dict[str, Any], change: Change | None, base: Attempt | None, say: Callable[[str], None]
    ) -> Attempt:
        number = len(self.attempts) + 1
        attempt = Attempt(
            number=number,
            folder=str(self.folder / f"attempt-{number}"),
            values=values,
            change=change,
            base=None if base is None else base.number,
        )
        self.attempts.append(attempt)
        say(introduced(attempt, self.budget))
        self._run(attempt, say)
        if base is not None and attempt.exit_code != INTERRUPTED:
            attempt.verdict = judge(base, attempt, self.declared)
            say(judged(attempt))
        self.judge()
        self.write()
        return attempt

    def _run(self, attempt: Attempt, say: Callable[[str], None]) -> None:
        values = attempt.values | {"output_dir": attempt.folder, "locked_fields": self._locked(attempt)}
        stops = self._stops(attempt)
        if stops:
            values["stop_on"] = stops
        if attempt.base is not None:
            values["parent_run"] = self.attempts[attempt.base - 1].folder
        if attempt.change is not None and attempt.change.checkpoint:
            values["resume_from_checkpoint"] = attempt.change.checkpoint
        if self._saves(attempt):
            values["save_steps"] = max(1, self.config["max_steps"] // CHECKPOINTS)
            values.setdefault("save_total_limit", 5)
        file = self.folder / f"attempt-{attempt.number}.yaml"
        file.write_text(run_file(self.method, values, {}), encoding="utf-8")
        self._train(attempt, file, say)

    def _train(self, attempt: Attempt, file: Path, say: Callable[[str], None]) -> None:
        findings: dict[str, dict[str, Any]] = {}
        with open(self.folder / f"attempt-{attempt.number}.log", "w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "ft_host", "train", self.method, str(file), "--progress", "json"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, encoding="utf-8", errors="replace")
            try:
                for event in events_of(process.stdout):
                    follow(event, findings, say)
                attempt.exit_code = process.wait()
            except KeyboardInterrupt:  # the run receives it too, and saves its state
                process.wait()
                attempt.exit_code = INTERRUPTED
        self._record(attempt, findings)

    def _stops(self, attempt: Attempt) -> list[str]:
        """Errors with a remedy of the attempts before it. What those had no chance to show is no reason to stop, nor is
        a result that is worse than at the start: it may still be better than theirs. Nothing ends the last attempt
        early, whose findings can't be acted on."""
        if attempt.number == self.budget:
            return []
        errors = {each["code"] for other in self.attempts for each in _patchable_errors(other)}
        return sorted(errors - self.outcomes)

    def _saves(self, attempt: Attempt) -> bool:
        """Whether the autopilot sets the interval of checkpoints, which is then no business of a remedy."""
        return "save_steps" not in attempt.values and self.config["max_steps"] > 0

    def _locked(self, attempt: Attempt) -> list[str]:
        own = ["save_steps", "save_total_limit"] if self._saves(attempt) else []
        return sorted({*self.locked, *self._protected(), *own})

    def _record(self, attempt: Attempt, reported: dict[str, dict[str, Any]]) -> None:
        """Read the attempt's result from its folder. An attempt that was refused before it had a folder has only its
        output.
        """
        attempt.findings = list(reported.values())
        record = self.record(attempt)
        if record is None:
            attempt.status = "refused"
            return
        self.declared = self.declared or record.facts.get("plan/metric_directions", {})
        attempt.status, attempt.steps = record.status, record.steps
        attempt.metrics, attempt.training, attempt.scale = figures(record), training(record), scale_of(record.config)
        written = {
            finding["fingerprint"]: finding for finding in read_json_lines(Path(attempt.folder) / "findings.jsonl")[0]
        }
        attempt.findings = list((reported | written).values())

    def _protected(self) -> list[str]:
        return [name for name in PROTECTED if name in self.config]

    def record(self, attempt: Attempt) -> RunRecord | None:
        """Return the run of an attempt; None where it was refused before it had a folder."""
        if not (Path(attempt.folder) / "run.json").is_file():
            return None
        try:
            return read_run(attempt.folder)
        except RunUnreadable:  # killed while it was created
            return None

    # -- what to change

    def choose(self, base: Attempt) -> tuple[dict[str, Any], Change] | None:
        """Return the fields of the next attempt, for the worst open finding with an untried remedy; None where there is
        none.
        """
        for values, change in candidates(base, self.attempts, self.config, set(self._locked(base))):
            if not self.accepts({name: new for name, (_, new) in change.patch.items()}):
                continue  # a number that went further than its field allows
            begun = first_step_of(base, change)
            change.checkpoint = None if begun is None else self._good_checkpoint(base, begun)
            return values, change
        return None

    def _good_checkpoint(self, attempt: Attempt, first_step: int) -> str | None:
        """Return the newest checkpoint from before the problem whose weights were still as good as any before."""
        record = self.record(attempt)
        for step in reversed(record.checkpoints if record is not None else []):
            if step < first_step and is_good(record, step):
                return str(Path(attempt.folder) / "checkpoints" / f"step-{step}")
        return None

    # -- what it brought

    def judge(self) -> None:
        """Find the best of the finished attempts, by the most important held-out metric."""
        best = best_of(self.attempts, self.declared)
        if best is not None:
            self.best, self.metric = best.number, metric_of(best)

    @property
    def cleared(self) -> list[Attempt]:
        """The attempts whose change was no better: what they changed isn't the cause."""
        return [each for each in self.attempts if each.verdict is not None and not each.verdict.adopted]

    def write(self) -> None:
        """Write the lineage and its page."""
        from ft_host.autopilot.page import write_flight

        lineage = {
            "format": 1,
            "method": self.method,
            "budget": self.budget,
            "locked": self.locked,
            "best": self.best,
            "metric": self.metric,
            "cleared": [
                {"attempt": each.number, "finding": each.change.finding, "patch": each.change.patch}
                for each in self.cleared
                if each.change is not None
            ],
            "attempts": [asdict(attempt) for attempt in self.attempts],
        }
        write_json(self.folder / "autopilot.json", fmt.plain(lineage))
        write_flight(self, self.folder / "report.html")

    @property
    def exit_code(self) -> int:
        """Return 0 where an attempt has finished, otherwise the exit code of the last."""
        last = self.attempts[-1]
        if self.best is not None:
            return 0
        return last.exit_code if last.exit_code else StoppedByFinding.exit_code


def _patchable_errors(attempt: Attempt) -> list[dict[str, Any]]:
    return [
        finding
        for finding in attempt.open_findings()
        if finding["severity"] == "error" and any(remedy["patch"] for remedy in finding["remedies"])
    ]


def is_good(record: RunRecord, step: int) -> bool:
    """Return whether the results of a checkpoint's weights, in the steps after it, are about as good as any before.

    The result is the loss, or the reward of a run with rollouts. A logged loss is that of the weights
    before the step.
    """
    name = record.main_metric
    series, way = record.train[name], -1 if name == "loss" else 1
    before = [value for at, value in zip(series.steps, series.values, strict=True) if at <= step]
    after = [value for at, value in zip(series.steps, series.values, strict=True) if at > step][:3]
    if not before or not after or not all(math.isfinite(value) for value in after):
        return False
    best = max((way * value for value in before), default=-math.inf)
    return way * sum(after) / len(after) >= best - SLACK * max(abs(best), 0.1)
