"""What a run prints: a bar on a terminal, plain lines elsewhere, JSON lines for programs, or nothing.

Each printer is a plugin of the run that implements `ft_log`, like any other sink.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.hooks import hookimpl
from ft_host.util.console import mode, show
from ft_host.util.jsonl import json_text, visible

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.diagnostics import Finding
    from ft_host.run import Run

ALWAYS = ("loss", "grad_norm", "learning_rate")
ALERTS = {"warning": "WARN", "error": "ERROR"}  # as Weights & Biases and trackio call them


def _number(name: str, value: Any) -> str:
    if not isinstance(value, (int, float)):
        return f"{name} {value}"
    return f"{name} {value:.3g}" if abs(value) < 1e-3 and value else f"{name} {value:.4g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _eval_line(entry: dict[str, Any]) -> str:
    parts = [_number(key, value) for key, value in entry.items() if key.startswith("eval_")]
    return f"eval at step {entry['step']}: " + "  ".join(parts)


def _earned(config: RunConfig) -> tuple[str, ...]:
    """Return the metric that matters most in a run that learns from its own completions."""
    return (config.reward_metric,) if isinstance(config, RolloutConfig) else ()


class Lines:
    """One line every `logging_steps`. Values logged with the first step of a rollout stay until the next one."""

    def __init__(self, total: int | None):
        self.total = total
        self.latest: dict[str, Any] = {}
        self.started = time.monotonic()
        self.first: int | None = None

    @hookimpl
    def ft_log(self, entry, run):
        if entry["kind"] == "eval":
            show(_eval_line(entry), sys.stderr)
            return
        step = entry["step"]
        shown = (*_earned(run.config), *ALWAYS, *run.config.progress_metrics)
        self.latest |= {key: entry[key] for key in shown if key in entry}
        if self.first is None:
            self.first = step - 1
        if step % run.config.logging_steps and step != self.total:
            return
        parts = [f"step {step}" + (f"/{self.total}" if self.total else "")]
        parts += [_number(key, self.latest[key]) for key in shown if key in self.latest]
        parts.append(f"{entry['perf/tokens_per_second']:.0f} tokens/s")
        if self.total:
            done = step - self.first
            left = (time.monotonic() - self.started) / done * max(self.total - step, 0)
            parts.append(f"ETA {_duration(left)}")
        show("  ".join(parts), sys.stderr)


class Bar:
    """tqdm, with the reward of the last rollout, loss, tokens per second and the time left."""

    def __init__(self, total: int | None, done: int):
        from tqdm import tqdm

        self.earned: dict[str, Any] = {}
        self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, file=sys.stderr)

    @hookimpl
    def ft_log(self, entry, run):
        if entry["kind"] == "eval":
            self.bar.write(visible(_eval_line(entry)), file=sys.stderr)
            return
        self.earned |= {key: entry[key] for key in _earned(run.config) if key in entry}
        shown = [_number(key, value) for key, value in self.earned.items()]
        shown += [f"loss {entry['loss']:.4g}", f"{entry['perf/tokens_per_second']:.0f} tokens/s"]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(1)


class Json:
    """Each entry of metrics.jsonl on standard output."""

    @hookimpl
    def ft_log(self, entry, run):
        print(json_text(entry), flush=True)


class Trackers:
    """TensorBoard, Weights & Biases, trackio, MLflow, … through accelerate. Values logged with the first step of a
    rollout are sent with the next step that is sent. Warnings and errors become alerts in Weights & Biases and trackio,
    which have such."""

    def __init__(self):
        self.waiting: dict[str, Any] = {}
        self.found: list[Finding] = []  # not sent yet: there are findings before there are trackers
        self.alerted: set[tuple[str, str]] = set()

    @hookimpl
    def ft_finding(self, finding, run):
        self.found.append(finding)
        self._alert(run)

    def _alert(self, run: Run) -> None:
        """An alert for each open finding, once, and again where it has become an error."""
        if not self.found or not run.accelerator.trackers:  # accelerate starts them after the plan is known
            return
        for finding in self.found:
            key = (finding.fingerprint, finding.severity)
            if finding.state != "open" or finding.severity not in ALERTS or key in self.alerted:
                continue
            self.alerted.add(key)
            title, level = f"{finding.fingerprint}: {finding.title}", ALERTS[finding.severity]
            for tracker in run.accelerator.trackers:
                if tracker.name == "wandb":
                    tracker.tracker.alert(title=title, text=finding.line(), level=level)
                elif tracker.name == "trackio":
                    trackio = importlib.import_module("trackio")
                    if "alert" in vars(trackio):  # its first versions had none
                        trackio.alert(title=title, text=finding.line(), level=trackio.AlertLevel[level])
        self.found.clear()

    @hookimpl
    def ft_log(self, entry, run):
        self._alert(run)
        values = {
            key: value
            for key, value in entry.items()
            if key not in ("kind", "step") and isinstance(value, (int, float))
        }
        if entry["kind"] == "train":
            self.waiting |= values
            if entry["step"] % run.config.logging_steps:
                return
            values, self.waiting = self.waiting, {}
        run.accelerator.log(values, step=entry["step"])


def sinks(progress: str, total: int | None, done: int) -> list[Any]:
    """Return the printers that `config.progress` selects."""
    how = mode(progress)
    if how == "bar":
        return [Bar(total, done)]
    if how == "lines":
        return [Lines(total)]
    if how == "json":
        return [Json()]
    return []
