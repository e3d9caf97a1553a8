"""Run folders made of thin air: what a run leaves behind, without training anything. Imports no torch."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ft_host.testing.run_lines import eval_line, eval_samples, rollout_metrics, rollout_samples, train_line

START = datetime(2026, 3, 2, 14, 5, 7, tzinfo=UTC)
CONFIG = {
    "model": "model",
    "dtype": "float32",
    "use_peft": False,
    "dataset": "data/train.jsonl",
    "eval_dataset": "data/eval.jsonl",
    "max_length": 256,
    "packing": False,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {},
    "warmup_steps": 20,
    "optim": "adamw",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": None,
    "seed": 42,
    "eval_steps": 50,
    "eval_reward": ["reward.py:exact_match"],
    "max_completion_length": 64,
    "eval_temperature": 0.0,
    "backend": "transformers",
    "output_dir": "runs/sums",
    "save_steps": 500,
    "report_to": [],
    "loss_type": "nll",
}
ORIGINS = {
    "model": "run.yaml:2",
    "dataset": "run.yaml:3",
    "eval_dataset": "run.yaml:4",
    "max_length": "run.yaml:5",
    "per_device_train_batch_size": "run.yaml:8",
    "learning_rate": "flag --learning-rate",
    "lr_scheduler_type": "run.yaml:9",
    "warmup_steps": "run.yaml:10",
    "eval_steps": "run.yaml:12",
    "eval_reward": "run.yaml:13",
    "max_completion_length": "run.yaml:14",
    "output_dir": "flag --output-dir",
}


def made_finding(**fields: Any) -> dict[str, Any]:
    """A line of findings.jsonl, with `fields` in place of what it says by itself."""
    code = fields.get("code", "OPT003")
    return {
        "schema": "ft-host.finding/1",
        "code": code,
        "title": "The loss has jumped up",
        "severity": "warning",
        "stage": "train",
        "state": "open",
        "message": "The loss has been above 4.88 for four steps, after 2.89 before.",
        "why": "The weights were thrown out of where they were.",
        "evidence": [{"metric": "loss", "value": 5.1, "mean": 3.4, "baseline": 2.9}],
        "remedies": [
            {
                "rank": 1,
                "why": "Lower learning_rate from 0.001 to 0.0002",
                "applicability": "unsafe",
                "patch": [{"op": "replace", "path": "/learning_rate", "from": 1e-3, "value": 2e-4}],
                "from_start": False,
                "expected": "smaller updates",
            }
        ],
        "cause": None,
        "step": 40,
        "first_step": 30,
        "last_step": 40,
        "count": 11,
        "window": 50,
        "share": 0.3,
        "muted_by": None,
        "plugin": "ft-host 0.4.0",
        "fingerprint": code,
        "page": f"docs/rules/{code}.md",
    } | fields


def make_run(
    folder: str | Path,
    *,
    steps: int = 300,
    eval_steps: int | None = 50,
    status: str = "finished",
    error: str | None = None,
    planned_steps: int | None = None,
    config: dict[str, Any] | None = None,
    speed: float = 1.0,
    seed: int = 0,
    rollouts: bool = False,
    findings: Sequence[dict[str, Any]] = (),
) -> Path:
    """Write the folder of a run of `steps` optimizer steps that learnt to add numbers, and return it.

    `eval_steps` None: no evaluation and no samples. `status` is what run.json says, with `error`; a run that hasn't
    finished stopped after `steps` of `planned_steps` and has no model. `config` overrides fields and counts as set by
    a flag. `speed` is how fast it learns, `seed` makes other noise. With `rollouts` it is a run of ft-grpo that samples
    completions at every second step and learns from them. `findings` are lines of findings.jsonl.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    config = config or {}
    values = CONFIG | {"output_dir": str(folder), "eval_steps": eval_steps} | config
    flags = {name: f"flag --{name.replace('_', '-')}" for name in config}
    planned = planned_steps or steps
    method = "grpo" if rollouts else "sft"
    lines, samples = [], []
    for step in range(steps + 1):
        if step:
            lines.append(train_line(step, planned, float(values["learning_rate"]), speed, noise))
            if rollouts:
                lines[-1] |= {"loss": 0.01 * noise.gauss(0, 1), "clip_ratio/region_mean": 0.0}
                del lines[-1]["mean_token_accuracy"]
            if rollouts and step % 2:
                lines[-1] |= rollout_metrics(step, planned, speed, noise)
                samples += rollout_samples(step, step // 2)
        if eval_steps and (step % eval_steps == 0 or (step == steps and status == "finished")):
            lines.append(eval_line(step, planned, speed))
            samples += eval_samples(step, planned)
    seconds = 9 + steps * 0.57 + 4.1 * sum(line["kind"] == "eval" for line in lines)
    took = timedelta(seconds=round(seconds))
    result = {key: value for line in lines for key, value in line.items() if key not in ("kind", "step")}
    info = {
        "format": 1,
        "method": method,
        "status": status,
        "created": START.isoformat(),
        "finished": (START + took).isoformat() if status != "running" else None,
        "error": error,
        "config": values,
        "origins": {name: "default" for name in values} | ORIGINS | flags,
        "plugins": [
            {
                "kind": "method",
                "name": method,
                "distribution": f"ft-{method}",
                "version": "0.1.0",
                "stability": "experimental",
            },
            {
                "kind": "backend",
                "name": "transformers",
                "distribution": "ft-host",
                "version": "0.1.0",
                "stability": "experimental",
            },
        ],
        "wrappers": [],
        "environment": {
            "ft-host": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "accelerate": "1.15.0",
            "peft": "0.18.0",
            "datasets": "5.2.0",
            "platform": "Linux-6.1-x86_64",
            "devices": ["cpu, 2 cores"],
            "world_size": 1,
        },
        "data": {
            "train": {
                "path": "data/train.jsonl",
                "rows": 6400,
                "fingerprint": "5f0c1d9be2a7",
                "columns": ["prompt", "completion"],
            },
            "eval": (
                {
                    "path": "data/eval.jsonl",
                    "rows": 200,
                    "fingerprint": "a91e44c07d35",
                    "columns": ["prompt", "completion"],
                }
                if eval_steps
                else None
            ),
        },
        "plan": {
            "rows_per_step": 64,
            "planned_steps": planned,
            "notes": [
                f"64 rows a step (64 a device × 1 accumulated × 1 processes), {planned} steps",
                "segment attention: sdpa, one call per segment; the probe found it exact",
            ],
        },
        "model": {"class": "LlamaForCausalLM", "parameters": 1_842_432, "trainable": 1_842_432},
        "parent": None,
        "result": result if status == "finished" else None,
    }
    said = [{"time": START.isoformat(), "step": 0, "level": "info", "text": note} for note in info["plan"]["notes"]]
    said.append(
        {
            "time": START.isoformat(),
            "step": 0,
            "level": "warning",
            "text": f"{method} is experimental: its fields and metrics may change between minor versions",
        }
    )
    (folder / "run.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    for name, rows in (
        ("metrics.jsonl", lines),
        ("samples.jsonl", samples),
        ("events.jsonl", said),
        ("findings.jsonl", findings),
    ):
        if rows:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if steps:
        (folder / "checkpoints" / f"step-{steps}").mkdir(parents=True)
    if status == "finished":
        (folder / "model").mkdir()
    return folder
