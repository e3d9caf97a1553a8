"""Repeats a run file: each attempt applies a remedy for the findings of the one before.

    OUT/attempt-1/ ...    run folders; each names its parent run
    OUT/attempt-1.yaml    the run file
    OUT/autopilot.json    the lineage: the changes, their reasons and results
    OUT/report.html       the same for people

An attempt is `ft-host train` in a separate process, which stops by itself (`stop_on: [patchable]`) at a warning or
error with a remedy in the config. Data, models, rewards and fields that the user locked are never changed. Imports no
torch.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ft_host.autopilot.events import events_of, follow, introduced
from ft_host.diagnostics.patch import run_file
from ft_host.errors import StoppedByFinding
from ft_host.report import RunRecord, RunUnreadable, read_run
from ft_host.report.parts import headline_metrics
from ft_host.rundir import format as fmt
from ft_host.rundir.folder import write_json
from ft_host.rundir.lines import read_json_lines

# Fields that define the task or the machine: never part of a remedy.
PROTECTED = (
    "model",
    "model_revision",
    "trust_remote_code",
    "dataset",
    "dataset_config",
    "dataset_train_split",
    "eval_dataset",
    "dataset_test_split",
    "dataset_columns",
    "eval_reward",
    "reward",
    "reward_weights",
    "reward_kwargs",
    "environment",
    "tools",
    "ref_model",
    "reward_model",
    "seed",
    "max_steps",
    "output_dir",
    "parent_run",
    "resume_from_checkpoint",
    "rules_select",
    "rules_ignore",
    "stop_on",
    "fail_on",
    "locked_fields",
    "num_processes",
    "backend",
)
# Ignored when comparing a config with those tried before.
BOOKKEEPING = ("output_dir", "parent_run", "resume_from_checkpoint", "stop_on", "save_steps", "save_total_limit")
SLACK = 0.15  # a checkpoint may be worse than the best by this share: steps vary
CHECKPOINTS = 10  # per attempt, where the user hasn't set an interval


@dataclass(kw_only=True)
class Change:
    """The change made for a finding."""

    finding: str  # its fingerprint
    message: str
    remedy: str
    patch: dict[str, list[Any]]  # field: [from, to]
    checkpoint: str | None  # where it resumed; None: from the beginning


@dataclass(kw_only=True)
class Attempt:
    """One run of the lineage. `values`: the fields that aren't at their defaults."""

    number: int
    folder: str
    values: dict[str, Any]
    change: Change | None  # relative to the attempt before
    status: str = "running"
    exit_code: int | None = None
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # held-out, at the end
    findings: list[dict[str, Any]] = field(default_factory=list)  # in their final state, as in findings.jsonl


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

    def run(self, values: dict[str, Any], say: Callable[[str], None]) -> None:
        """Run one attempt after another, at most `budget`."""
        change: Change | None = None
        while len(self.attempts) < self.budget:
            attempt = self._next(values, change)
            say(introduced(attempt, self.budget))
            last = len(self.attempts) == self.budget
            self._run(attempt, last, say)
            self.judge()
            self.write()
            if attempt.exit_code == 130:
                return
            following = None if last else self.choose(attempt)
            if following is None:
                return
            values, change = following

    # -- one attempt

    def _next(self, values: dict[str, Any], change: Change | None) -> Attempt:
        number = len(self.attempts) + 1
        attempt = Attempt(number=number, folder=str(self.folder / f"attempt-{number}"), values=values, change=change)
        self.attempts.append(attempt)
        return attempt

    def _run(self, attempt: Attempt, last: bool, say: Callable[[str], None]) -> None:
        locked = sorted({*self.locked, *self._protected()})
        values = attempt.values | {"output_dir": attempt.folder, "locked_fields": locked}
        if not last:  # findings of the last attempt can't be acted on
            values["stop_on"] = ["patchable"]
        if attempt.number > 1:
            values["parent_run"] = self.attempts[-2].folder
        if attempt.change is not None and attempt.change.checkpoint:
            values["resume_from_checkpoint"] = attempt.change.checkpoint
        if "save_steps" not in values and self.config["max_steps"] > 0:
            values["save_steps"] = max(1, self.config["max_steps"] // CHECKPOINTS)
            values.setdefault("save_total_limit", 5)
        file = self.folder / f"attempt-{attempt.number}.yaml"
        file.write_text(run_file(self.method, values, {}), encoding="utf-8")
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
                attempt.exit_code = 130
        self._record(attempt, findings, file)

    def _record(self, attempt: Attempt, reported: dict[str, dict[str, Any]], file: Path) -> None:
        """Read the attempt's result from its folder. An attempt that was refused before it had a folder has only its
        output.
        """
        attempt.findings = list(reported.values())
        record = self.record(attempt)
        if record is None:
            attempt.status = "refused"
            return
        attempt.status, attempt.steps = record.status, record.steps
        attempt.metrics = {name: record.evals[name].last for name in headline_metrics(record)}
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

    def choose(self, attempt: Attempt) -> tuple[dict[str, Any], Change] | None:
        """Return the fields of the next attempt, for the worst open finding with an untried remedy; None where there is
        none.
        """
        tried = [_compared(other.values) for other in self.attempts]
        open_ones = [
            finding for finding in attempt.findings if finding["state"] == "open" and finding["severity"] != "info"
        ]
        for finding in sorted(open_ones, key=lambda finding: (finding["severity"] != "error", finding["first_step"])):
            for remedy in finding["remedies"]:
                patch = {change["path"].removeprefix("/"): change["value"] for change in remedy["patch"]}
                if not patch or set(patch) & {*self.locked, *self._protected()}:
                    continue
                patch = {name: self._further(finding["code"], name, value) for name, value in patch.items()}
                values = attempt.values | patch
                if _compared(values) in tried:
                    continue
                return values, Change(
                    finding=finding["fingerprint"],
                    message=finding["message"],
                    remedy=remedy["why"],
                    patch={
                        name: [attempt.values.get(name, self.config.get(name)), value] for name, value in patch.items()
                    },
                    checkpoint=None if remedy["from_start"] else self._good_checkpoint(attempt, finding["first_step"]),
                )
        return None

    def _further(self, code: str, name: str, value: Any) -> Any:
        """Return the new value of a field.

        A number that the same rule has changed before without success goes further each time: a rate divided by 5 is
        next divided by 25.
        """
        changes = [attempt.change for attempt in self.attempts if attempt.change is not None]
        before = sum(name in change.patch and change.finding.partition(":")[0] == code for change in changes)
        old = self.attempts[-1].values.get(name)
        if not before or not all(isinstance(number, float) and number > 0 for number in (old, value)):
            return value
        return float(f"{old * (value / old) ** (before + 1):.2g}")

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
        finished = [attempt for attempt in self.attempts if attempt.status == "finished"]
        if not finished:
            return
        measured = [attempt for attempt in finished if attempt.metrics]
        if not measured:
            self.best = finished[-1].number
            return
        self.metric = next(iter(measured[-1].metrics))
        record = self.record(measured[-1])
        way = record.better(self.metric) if record is not None else fmt.better(self.metric)
        candidates = [attempt for attempt in measured if self.metric in attempt.metrics]
        self.best = max(candidates, key=lambda attempt: (way * attempt.metrics[self.metric], attempt.number)).number

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


def _compared(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in BOOKKEEPING}
