"""Run folders made of thin air: what a run leaves behind, without training anything. Imports no torch."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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


def _train_line(step: int, steps: int, learning_rate: float, speed: float, noise: random.Random) -> dict[str, Any]:
    done = step / max(steps, 2)
    rise = min(1.0, step / 20)
    loss = 0.02 + 3.4 * math.exp(-7 * speed * done) * (1 + 0.12 * noise.gauss(0, 1))
    seconds = 0.55 * (1 + 0.06 * abs(noise.gauss(0, 1)))
    return {
        "kind": "train",
        "step": step,
        "epoch": 3 * done,
        "loss": loss,
        "grad_norm": (0.3 + 2.2 * math.exp(-5 * speed * done)) * (1 + 0.25 * abs(noise.gauss(0, 1))),
        "learning_rate": learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done)),
        "num_tokens": step * 3100,
        "entropy": 0.05 + 2.9 * math.exp(-6 * speed * done) * (1 + 0.05 * noise.gauss(0, 1)),
        "mean_token_accuracy": min(1.0, 1 - 0.85 * math.exp(-6 * speed * done) * (1 + 0.05 * noise.gauss(0, 1))),
        "perf/step_time": seconds,
        "perf/tokens_per_second": 3100 / seconds,
        "perf/supervised_tokens_per_second": 1450 / seconds,
        "perf/peak_memory_mb": 1180 + 60 * min(1, step / 30),
    }


def _eval_line(step: int, steps: int, speed: float) -> dict[str, Any]:
    done = speed * step / max(steps, 2)
    right = round(0.97 / (1 + math.exp(-14 * (done - 0.4))) * 200) / 200 if step else 0.0
    return {
        "kind": "eval",
        "step": step,
        "eval_loss": 0.03 + 3.6 * math.exp(-7 * done),
        "eval_entropy": 0.05 + 2.9 * math.exp(-6 * done),
        "eval_mean_token_accuracy": 1 - 0.9 * math.exp(-6 * done),
        "eval_reward": right,
        "eval_rewards/exact_match/mean": right,
        "eval_rewards/exact_match/std": math.sqrt(right * (1 - right)),
        "eval_completions/mean_length": 21 + 43 * math.exp(-8 * done),
        "perf/eval_time": 4.1,
    }


def _samples(step: int, steps: int) -> list[dict[str, Any]]:
    out = []
    for index, (a, b) in enumerate([(347, 586), (912, 78), (405, 999), (61, 740)]):
        answer = f"{a}+{b}: {a % 10}+{b % 10}={a % 10 + b % 10}, carry {(a % 10 + b % 10) // 10} … = {a + b}"
        known = step >= steps * (0.3 + 0.15 * index) and step > 0
        text = answer if known else (f"{a}+{b}{'+' * 9}" if step == 0 else answer[:-3] + str((a * b) % 1000))
        out.append(
            {
                "step": step,
                "prompt": f"Add {a} and {b}. Show each column.",
                "completion": text,
                "reference": answer,
                "rewards": {"exact_match": float(known)},
            }
        )
    return out


def _rollout_metrics(step: int, steps: int, speed: float, noise: random.Random) -> dict[str, float]:
    """What a step logs that begins with a rollout."""
    reward = (0.1 + 0.85 * min(1.0, speed * step / max(steps, 2))) * (1 + 0.05 * noise.gauss(0, 1))
    return {
        "reward": reward + 0.5,
        "reward_std": 0.4,
        "rewards/exact_match/mean": reward,
        "rewards/exact_match/std": 0.4,
        "rewards/brief/mean": 0.5,
        "rewards/brief/std": 0.1,
        "frac_reward_zero_std": 0.25,
        "completions/mean_length": 40 - 19 * min(1.0, step / max(steps, 2)),
        "completions/clipped_ratio": 0.0,
        "perf/rollout_time": 0.31,
        "perf/generation_time": 0.25,
        "perf/reward_time": 0.05,
        "perf/weight_sync_time": 0.02,
        "perf/annotation_time": 0.01,
        "perf/train_time": 0.22,
        "perf/generation_tokens_per_second": 3200.0,
    }


def _rollout_samples(step: int, number: int) -> list[dict[str, Any]]:
    """Two prompts with four completions each; of every second prompt one is right."""
    out = []
    for group, (a, b) in enumerate([(12 + number, 30), (55, 8 + number)]):
        for index in range(4):
            right = index == (1 if group else number % 4)
            text = f"rollout {number}: {a}+{b} = {a + b if right else a + b + 1 + index}"
            out.append(
                {
                    "step": step,
                    "kind": "rollout",
                    "rollout": number,
                    "prompt": f"Add {a} and {b}.",
                    "completion": text,
                    "rewards": {"exact_match": float(right), "brief": 0.5},
                    "extra": {"parsed": str(a + b)},
                    "advantage": 1.5 if right else -0.5,
                    "group": group,
                    "tokens": 9 + index,
                }
            )
    return out


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
            lines.append(_train_line(step, planned, float(values["learning_rate"]), speed, noise))
            if rollouts:
                lines[-1] |= {"loss": 0.01 * noise.gauss(0, 1), "clip_ratio/region_mean": 0.0}
                del lines[-1]["mean_token_accuracy"]
            if rollouts and step % 2:
                lines[-1] |= _rollout_metrics(step, planned, speed, noise)
                samples += _rollout_samples(step, step // 2)
        if eval_steps and (step % eval_steps == 0 or (step == steps and status == "finished")):
            lines.append(_eval_line(step, planned, speed))
            samples += _samples(step, planned)
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
