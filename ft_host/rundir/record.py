"""Reads a run's folder and reports what could not be read. Imports no torch.

A run may still be writing, may have been killed in the middle of a line, and may have gone back to a checkpoint and
repeated some steps. Each of these is read correctly.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ft_host.config.old_names import of_record
from ft_host.config.run import OLD_NAMES
from ft_host.errors import UsageError
from ft_host.rundir.checkpoints import steps_in
from ft_host.rundir.find import is_run, not_a_run
from ft_host.rundir.folder import FORMAT
from ft_host.rundir.format import better
from ft_host.rundir.lines import fits, is_step, number_of, read_json_lines
from ft_host.rundir.owner import state_of
from ft_host.rundir.series import Series
from ft_host.util.jsonl import from_words

STATUSES = ("running", "finished", "failed", "interrupted", "refused")
# What readers say of a run whose run.json says "running" and whose process is gone: nobody was left to write it there.
KILLED = "killed"
# Fields of run.json and their types. The first five are required; a run that failed early may lack the others.
FIELDS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "method": (str,),
    "status": (str,),
    "created": (str,),
    "config": (dict,),
    "finished": (str, type(None)),
    "error": (str, type(None)),
    "origins": (dict,),
    "plugins": (list,),
    "wrappers": (list,),
    "environment": (dict,),
    "data": (dict, type(None)),
    "plan": (dict, type(None)),
    "model": (dict, type(None)),
    "parent": (str, type(None)),
    "result": (dict, type(None)),
    "reference": (str,),
    "facts": (dict,),
    "facts_told": (dict,),
    "diagnostics": (dict,),
}
REQUIRED = ("format", "method", "status", "created", "config")
CHANGE = {"path": str, "from": object, "value": object}
PLUGIN = {"kind": str, "name": str, "distribution": str, "version": str}
REMEDY = {"rank": 1, "applicability": "", "patch": [], "from_start": False}  # what a remedy may leave out
# What readers need of a finding: a type, an object with these fields, or a list of such.
FINDING: dict[str, Any] = {
    "code": str,
    "fingerprint": str,
    "title": str,
    "severity": str,
    "state": str,
    "message": str,
    "why": str,
    "evidence": [{"metric": str, "value": object}],
    "remedies": [{"why": str, "applicability": str, "patch": [CHANGE], "from_start": bool}],
    "first_step": int,
    "last_step": int,
}


class RunUnreadable(UsageError):
    """A folder holds a run whose run.json can't be used. `reason` says why, without the file's name."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass
class RunRecord:
    """A run as read from its folder."""

    folder: Path
    method: str
    status: str
    created: datetime
    finished: datetime | None
    error: str | None
    config: dict[str, Any]
    origins: dict[str, str]
    plugins: list[dict[str, Any]]
    wrappers: list[Any]
    environment: dict[str, Any]
    data: dict[str, Any]
    plan: dict[str, Any]
    model: dict[str, Any]
    parent: str | None
    result: dict[str, Any]
    train: dict[str, Series] = field(default_factory=dict)  # without num_tokens and epoch
    evals: dict[str, Series] = field(default_factory=dict)
    tokens: float = math.nan  # tokens trained on so far
    epoch: float = math.nan
    steps: int = 0  # the last optimizer step that was logged
    reference: str = ""  # the method, as `ft-host train` takes it
    facts: dict[str, Any] = field(default_factory=dict)
    facts_told: dict[str, int] = field(default_factory=dict)  # the step after which each fact was recorded
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)  # by fingerprint, the last line of each
    samples: list[dict[str, Any]] = field(default_factory=list)  # of evaluations
    rollouts: list[dict[str, Any]] = field(default_factory=list)  # completions that were trained on
    events: list[dict[str, Any]] = field(default_factory=list)
    timeline: list[dict[str, Any]] = field(default_factory=list)  # what trainer and rollouts did when
    checkpoints: list[int] = field(default_factory=list)
    has_model: bool = False
    written: datetime | None = None  # when a metric or an event was last written
    problems: list[str] = field(default_factory=list)  # what could not be read

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def planned_steps(self) -> int | None:
        return self.plan.get("planned_steps")

    @property
    def seconds(self) -> float | None:
        """Seconds from start to end, or to the last thing written by a run that hasn't ended."""
        end = self.finished or self.written
        return None if end is None else max(0.0, (_aware(end) - _aware(self.created)).total_seconds())

    @property
    def has_rollouts(self) -> bool:  # whether it trained on completions of its own
        return bool(self.rollouts) or "perf/rollout_time" in self.train

    @property
    def main_metric(self) -> str:
        """What the run is about. A policy gradient's loss says nothing: its size is that of the advantages."""
        earned = self.facts.get("plan/reward_metric", "reward")
        return earned if self.has_rollouts and earned in self.train else "loss"

    def better(self, metric: str) -> int:
        """`format.better`, with what the method declares (`metric_directions`)."""
        return better(metric, self.facts.get("plan/metric_directions"))

    @property
    def has_metrics(self) -> bool:
        return bool(self.train or self.evals)


def _aware(when: datetime) -> datetime:
    return when if when.tzinfo else when.astimezone()


def _read_run_json(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunUnreadable(path, "missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunUnreadable(path, str(error)) from error
    if not text.strip():
        raise RunUnreadable(path, "empty")
    try:
        info = json.loads(text)
    except ValueError as error:
        raise RunUnreadable(path, f"not JSON: {error}") from error
    if not isinstance(info, dict):
        raise RunUnreadable(path, f"expected an object, found {type(info).__name__}")
    missing = [name for name in REQUIRED if name not in info]
    if missing:
        raise RunUnreadable(path, f"lacks {', '.join(missing)}")
    for name, types in FIELDS.items():
        if name in info and not isinstance(info[name], types):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise RunUnreadable(path, f"{name} is {json.dumps(info[name])[:60]}, expected {wanted}")
    if not fits(info.get("plugins", []), [PLUGIN]) or not fits(list(info.get("origins", {}).values()), [str]):
        raise RunUnreadable(path, f"plugins must be objects with {', '.join(PLUGIN)}, and origins texts")
    if info["format"] != FORMAT:
        raise RunUnreadable(path, f"has format {info['format']}, this ft-host reads {FORMAT}")
    if info["status"] not in STATUSES:
        raise RunUnreadable(path, f"status is {info['status']!r}, expected one of {', '.join(STATUSES)}")
    for name in ("created", "finished"):
        try:
            info[name] = datetime.fromisoformat(info[name]) if info.get(name) else None
        except ValueError as error:
            raise RunUnreadable(path, f"{name}: {error}") from error
    if info["created"] is None:
        raise RunUnreadable(path, "created is empty")
    return info


def _read_metrics(record: RunRecord) -> None:
    rows, problems = read_json_lines(record.folder / "metrics.jsonl")
    record.problems += problems
    curves = {"train": record.train, "eval": record.evals}
    strange: dict[str, int] = {}
    for row in rows:
        kind, step = row.get("kind"), row.get("step")
        if not isinstance(kind, str) or kind not in curves or not is_step(step):
            what = f"lines without a kind of train or eval and a step (kind {kind!r}, step {step!r})"
            strange[what] = strange.get(what, 0) + 1
            continue
        if kind == "train" and step <= record.steps:
            for series in (*record.train.values(), *record.evals.values()):
                series.cut(step)
        elif kind == "eval":
            for series in record.evals.values():
                series.cut(step)
        if kind == "train":
            record.steps = int(step)
            tokens, epoch = number_of(row.get("num_tokens")), number_of(row.get("epoch"))
            record.tokens = tokens if tokens is not None else math.nan
            record.epoch = epoch if epoch is not None else math.nan
        for name, raw in row.items():
            if name in ("kind", "step", "num_tokens", "epoch"):
                continue
            value = number_of(raw)
            if value is None:
                what = f"values of {name} that are not numbers"
                strange[what] = strange.get(what, 0) + 1
            else:
                curves[kind].setdefault(name, Series()).put(step, value)
    for curve in curves.values():
        for name in [name for name, series in curve.items() if not len(series)]:
            del curve[name]
    record.problems += [f"metrics.jsonl: {times} {what}" for what, times in strange.items()]


def _filled(finding: dict[str, Any]) -> dict[str, Any]:
    """Return a finding with what it may leave out, and with a severity that readers know."""
    remedies, severity = finding.get("remedies"), finding.get("severity")
    if isinstance(remedies, list):
        finding = finding | {"remedies": [REMEDY | each if isinstance(each, dict) else each for each in remedies]}
    known = severity in ("warning", "error") or not isinstance(severity, str)
    return finding if known else finding | {"severity": "info"}


def read_run(folder: str | Path) -> RunRecord:
    """Read everything in the folder of a run.

    Raises `UsageError` where it isn't a run, naming runs nearby, and `RunUnreadable` where run.json can't be used.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise not_a_run(folder)
    info = _read_run_json(folder)
    if info["status"] == "running" and state_of(folder) == "dead":
        info["status"] = KILLED
    old = of_record(info["config"], OLD_NAMES)  # of a run of an earlier version
    record = RunRecord(
        folder=folder,
        method=info["method"],
        status=info["status"],
        created=info["created"],
        finished=info["finished"],
        error=info.get("error"),
        config={old.get(name, name): value for name, value in info["config"].items()},
        origins={old.get(name, name): said for name, said in info.get("origins", {}).items()},
        plugins=info.get("plugins", []),
        wrappers=info.get("wrappers", []),
        environment=info.get("environment", {}),
        data=info.get("data") or {},
        plan=info.get("plan") or {},
        model=info.get("model") or {},
        parent=info.get("parent"),
        result=info.get("result") or {},
        reference=info.get("reference") or info["method"],
        facts=from_words(info.get("facts") or {}),
        facts_told=info.get("facts_told") or {},
    )
    _read_metrics(record)
    logs = {"samples.jsonl": record.samples, "events.jsonl": record.events, "timeline.jsonl": record.timeline}
    for name, rows in logs.items():
        lines, problems = read_json_lines(folder / name)
        rows += [line for line in lines if is_step(line.get("step", 0))]
        odd = sum(not is_step(line.get("step", 0)) for line in lines)
        record.problems += problems + ([f"{name}: {odd} lines whose step is no number"] if odd else [])
    findings, problems = read_json_lines(folder / "findings.jsonl")
    record.problems += problems
    for finding in map(_filled, findings):
        odd = [name for name, form in FINDING.items() if not (name in finding and fits(finding[name], form))]
        if odd:
            record.problems.append(f"findings.jsonl: a line without {', '.join(odd)}, or with another kind of value")
        else:
            record.findings[finding["fingerprint"]] = finding
    record.rollouts = [sample for sample in record.samples if sample.get("kind") == "rollout"]
    record.samples = [sample for sample in record.samples if sample.get("kind") != "rollout"]
    record.checkpoints = [step for step, _ in steps_in(folder / "checkpoints")]
    record.has_model = (folder / "model").is_dir()
    times = [
        path.stat().st_mtime
        for name in ("run.json", "metrics.jsonl", "events.jsonl")
        if (path := folder / name).is_file()
    ]
    record.written = datetime.fromtimestamp(max(times)).astimezone(record.created.tzinfo)
    return record
