"""What the runs of all families have in common. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

REWARDS = Path(__file__).resolve().parent.parent / "rewards.py"
Fields = dict[str, Any]
# What a cure is judged by.
SCORED = 48  # held-out prompts whose completions are scored
HELD_OUT: dict[str, tuple[str, str]] = {
    "sft": ("eval_loss", "lower"),  # of 360 tokens, those that are right are a matter of chance where few are
    "dpo": ("eval_rewards/accuracies", "higher"),
    "kto": ("eval_reward", "higher"),
    "reward": ("eval_accuracy", "higher"),
} | dict.fromkeys(("grpo", "rloo", "ppo", "distill", "gkd", "gold", "sdft", "sdpo"), ("eval_reward", "higher"))

COMMON: Fields = {
    "use_cpu": True, "progress": "quiet", "save_steps": 0, "adam_beta2": 0.99, "warmup_steps": 10, "logging_steps": 50,
    "per_device_eval_batch_size": 64, "decode_batch_size": 128,
}  # fmt: skip


def bases(longest: int, right: str, near: str, show: Fields, solve: Fields, **own: Fields) -> dict[str, Fields]:
    """BASE of a family. `longest`: tokens that a completion may have. `show` and `solve`: the templates by which a
    teacher of sdft and of sdpo is shown something. `own`: a method's fields that are the family's own."""
    common = COMMON | {"max_completion_length": longest}
    offline = common | {"eval_steps": 20, "max_steps": 120, "per_device_train_batch_size": 16}
    sft = offline | {"dataset": "@data/train", "eval_dataset": "@data/test"}
    pairs = offline | {
        "model": "@model/start",
        "dataset": "@data/preference_train",
        "eval_dataset": "@data/preference_test",
    }
    judged = pairs | {
        "dataset": "@data/unpaired_train",
        "eval_dataset": "@data/unpaired_test",
        "per_device_train_batch_size": 32,
    }
    prompts = common | {
        "model": "@model/start",
        "dataset": "@data/train",
        "eval_dataset": "@data/test",
        "eval_max_rows": SCORED,
        "eval_reward": [right],
        "eval_steps": 20,
        "max_steps": 60,
    }
    online = prompts | {"reward": [right, near], "reward_workers": 1, "per_device_train_batch_size": 64}
    taught = prompts | {
        "teacher_model_name_or_path": "@model/able", "per_device_train_batch_size": 32, "learning_rate": 1e-3,
    }  # fmt: skip
    shown = {"model": "@model/shown", "dataset": "@data/shown_train", "eval_dataset": "@data/shown_test"}
    methods: dict[str, Fields] = {
        "sft": sft | {"model": "@model/scratch", "learning_rate": 3e-3},
        "dpo": pairs | {"learning_rate": 3e-4, "beta": 0.1},
        "kto": judged | {"learning_rate": 1e-4, "beta": 1.0, "eval_reward": [right], "eval_max_rows": SCORED},
        "reward": pairs | {"learning_rate": 1e-3, "center_rewards_coefficient": 0.01},
        "grpo": online | {"num_generations": 8, "learning_rate": 5e-4},
        "rloo": online | {"num_generations": 8, "learning_rate": 5e-4, "beta": 0.0},
        "ppo": online | {"num_ppo_epochs": 2, "kl_coef": 0.0, "vf_coef": 0.5, "learning_rate": 5e-4},
        "distill": taught | {"beta": 0.0},
        "gkd": taught,
        "gold": taught | {"model": "@model/pieces"},
        "sdft": prompts | shown | show | {"per_device_train_batch_size": 32, "learning_rate": 1e-3},
        "sdpo": prompts | solve | {
            "model": "@model/shown", "reward": [right], "reward_workers": 1, "num_generations": 4,
            "per_device_train_batch_size": 64, "learning_rate": 5e-4, "teacher_model_kind": "base",
            "distillation_mode": "full_logits", "distillation_alpha": 0.5,
        },
    }  # fmt: skip
    return {name: fields | own.get(name, {}) for name, fields in methods.items()}
