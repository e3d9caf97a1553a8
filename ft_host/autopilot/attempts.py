"""Runs, watches, mends, and goes on: attempts at one run file, each changed by what the one before has found.

    OUT/attempt-1/ ...    run folders; each names the one that it comes from
    OUT/attempt-1.yaml    what was run
    OUT/autopilot.json    the lineage: what was changed, why, and what it brought
    OUT/report.html       the same for people

An attempt is `ft-host train` in a process of its own, which stops by itself (`stop_on: [patchable]`) on a warning or
error that has a remedy in the config. Data, models, rewards and what the user has locked are never changed. Imports no
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

# What a run is about, and what runs it: never a remedy.
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
# Not compared when it is asked whether a config has been tried.
BOOKKEEPING = ("output_dir", "parent_run", "resume_from_checkpoint", "stop_on", "save_steps", "save_total_limit")
SLACK = 0.15  # by how much of the best a checkpoint may be worse than it: steps differ
CHECKPOINTS = 10  # of an attempt, where the user hasn't said when to write one


@dataclass(kw_only=True)
class Change:
    """What was done about a finding."""

    finding: str  # its fingerprint
    message: str
    remedy: str
    patch: dict[str, list[Any]]  # field: [from, to]
    checkpoint: str | None  # gone on from; None: from the beginning


@dataclass(kw_only=True)
class Attempt:
    """One run of the lineage. `values`: the fields that aren't at their defaults."""

    number: int
    folder: str
    values: dict[str, Any]
    change: Change | None  # that made it of the attempt before
    status: str = "running"
    exit_code: int | None = None
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # held-out, at the end
    findings: list[dict[str, Any]] = field(default_factory=list)  # as they ended; as in findings.jsonl


@dataclass(kw_only=True)
class Autopilot:
    """All attempts, and which of them is best."""

    folder: Path
    method: str  # as `ft-host train` takes it
    config: dict[str, Any]  # of the first attempt, whole
    budget: int
    locked: list[str]
    attempts: list[Attempt] = field(default_factory=list)
    best: int | None = None  # number of the best finished attempt
    metric: str | None = None  # that says so

    def run(self, values: dict[str, Any], say: Callable[[str], None]) -> None:
        """Attempt after attempt, `budget` at most."""
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
            found = None if last else self.choose(attempt)
            if found is None:
                return
            values, change = found

    # -- one attempt

    def _next(self, values: dict[str, Any], change: Change | None) -> Attempt:
        number = len(self.attempts) + 1
        attempt = Attempt(number=number, folder=str(self.folder / f"attempt-{number}"), values=values, change=change)
        self.attempts.append(attempt)
        return attempt

    def _run(self, attempt: Attempt, last: bool, say: Callable[[str], None]) -> None:
        locked = sorted({*self.locked, *self._protected()})
        values = attempt.values | {"output_dir": attempt.folder, "locked_fields": locked}
        if not last:  # what the last one finds can't be acted on
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
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                for event in events_of(process.stdout):
                    follow(event, findings, say)
                attempt.exit_code = process.wait()
            except KeyboardInterrupt:  # which the run has been sent as well, and saves its state
                process.wait()
                attempt.exit_code = 130
        self._record(attempt, findings, file)

    def _record(self, attempt: Attempt, told: dict[str, dict[str, Any]], file: Path) -> None:
        """What the attempt's folder says of it. One that was refused before it had a folder has only what it told."""
        attempt.findings = list(told.values())
        record = self.record(attempt)
        if record is None:
            attempt.status = "refused"
            return
        attempt.status, attempt.steps = record.status, record.steps
        attempt.metrics = {name: record.evals[name].last for name in headline_metrics(record)}
        written = {each["fingerprint"]: each for each in read_json_lines(Path(attempt.folder) / "findings.jsonl")[0]}
        attempt.findings = list((told | written).values())

    def _protected(self) -> list[str]:
        return [name for name in PROTECTED if name in self.config]

    def record(self, attempt: Attempt) -> RunRecord | None:
        """The run of an attempt; None where it was refused before it had a folder."""
        if not (Path(attempt.folder) / "run.json").is_file():
            return None
        try:
            return read_run(attempt.folder)
        except RunUnreadable:  # killed while it was being made
            return None

    # -- what to change

    def choose(self, attempt: Attempt) -> tuple[dict[str, Any], Change] | None:
        """The fields of the next attempt, by the worst open finding that has a remedy which wasn't tried; None where
        there is nothing to change."""
        tried = [_compared(each.values) for each in self.attempts]
        open_ones = [each for each in attempt.findings if each["state"] == "open" and each["severity"] != "info"]
        for finding in sorted(open_ones, key=lambda each: (each["severity"] != "error", each["first_step"])):
            for remedy in finding["remedies"]:
                patch = {each["path"].removeprefix("/"): each["value"] for each in remedy["patch"]}
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
        """The new value of a field. A number that the same rule has had changed before, and not by enough, goes further
        each time: a rate that was divided by 5 is then divided by 25."""
        changes = [each.change for each in self.attempts if each.change is not None]
        before = sum(name in each.patch and each.finding.partition(":")[0] == code for each in changes)
        old = self.attempts[-1].values.get(name)
        if not before or not all(isinstance(each, float) and each > 0 for each in (old, value)):
            return value
        return float(f"{old * (value / old) ** (before + 1):.2g}")

    def _good_checkpoint(self, attempt: Attempt, first_step: int) -> str | None:
        """The newest checkpoint from before the trouble began, and whose weights were still as good as any before."""
        record = self.record(attempt)
        for step in reversed(record.checkpoints if record is not None else []):
            if step < first_step and is_good(record, step):
                return str(Path(attempt.folder) / "checkpoints" / f"step-{step}")
        return None

    # -- what it brought

    def judge(self) -> None:
        """Find the best of the attempts that finished, by the most telling held-out metric."""
        finished = [each for each in self.attempts if each.status == "finished"]
        if not finished:
            return
        measured = [each for each in finished if each.metrics]
        if not measured:
            self.best = finished[-1].number
            return
        self.metric = next(iter(measured[-1].metrics))
        way = fmt.better(self.metric)
        known = [each for each in measured if self.metric in each.metrics]
        self.best = max(known, key=lambda each: (way * each.metrics[self.metric], each.number)).number

    def write(self) -> None:
        """The lineage, and its page."""
        from ft_host.autopilot.page import write_flight

        told = {
            "format": 1,
            "method": self.method,
            "budget": self.budget,
            "locked": self.locked,
            "best": self.best,
            "metric": self.metric,
            "attempts": [asdict(each) for each in self.attempts],
        }
        write_json(self.folder / "autopilot.json", fmt.plain(told))
        write_flight(self, self.folder / "report.html")

    @property
    def exit_code(self) -> int:
        """0 where an attempt has finished, else that of the last."""
        last = self.attempts[-1]
        if self.best is not None:
            return 0
        return last.exit_code if last.exit_code else StoppedByFinding.exit_code


def is_good(record: RunRecord, step: int) -> bool:
    """Whether what the weights of a checkpoint gave, in the steps after it, is about as good as anything before: the
    loss, or the reward of a run with rollouts. A loss that is logged is that of the weights before the step."""
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
