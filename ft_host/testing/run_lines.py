"""Made-up metrics and samples of a run, for tests of what reads its folder."""

from __future__ import annotations

import math
import random
from typing import Any


def train_line(step: int, steps: int, learning_rate: float, speed: float, noise: random.Random) -> dict[str, Any]:
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


def eval_line(step: int, steps: int, speed: float) -> dict[str, Any]:
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


def eval_samples(step: int, steps: int) -> list[dict[str, Any]]:
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


def rollout_metrics(step: int, steps: int, speed: float, noise: random.Random) -> dict[str, float]:
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


def rollout_samples(step: int, number: int) -> list[dict[str, Any]]:
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
