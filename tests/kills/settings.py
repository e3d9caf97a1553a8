"""The runs that are killed: small ones that use what a checkpoint must hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ft_distill.config import GKDConfig
from ft_dpo.config import DPOConfig
from ft_grpo.config import GRPOConfig
from ft_ppo.config import PPOConfig
from ft_sft.config import SFTConfig

from ft_host.config import RunConfig
from ft_host.testing import preference_texts, save_tiny, sentence, tiny_llama, write_rows

REWARD = '''
import random

def wordy(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]

def drawn(completions, **columns):
    """Uses the process's own random state, and leaves some groups without a signal."""
    return [float(len(text) % 3 == 0) + 0 * random.random() for text in completions]
'''
LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.1}


@dataclass(frozen=True)
class Setting:
    """A run, and how it is started: in one process, or in `ranks` under torchrun's agent."""

    name: str
    config_class: type[RunConfig]
    rows: str  # of `files`
    fields: dict[str, Any]
    ranks: int = 1
    by_hand: bool = False  # not in the suite: each start of it takes that of another process


SETTINGS = [
    Setting(
        "sft, LoRA, dropout, packed, workers",
        SFTConfig,
        "texts",
        LORA
        | {
            "packing": True,
            "max_length": 48,
            "dataloader_num_workers": 2,
            "num_train_epochs": 1.5,
            "max_steps": -1,
            "per_device_train_batch_size": 2,
        },
    ),
    Setting("sft, streamed", SFTConfig, "texts", {"dataset_streaming": True, "train_sampling_strategy": "random"}),
    Setting("dpo, cached reference", DPOConfig, "pairs", {"precompute_ref_log_probs": True, "ref_model": "other"}),
    Setting(
        "dpo, following reference, LoRA", DPOConfig, "pairs", LORA | {"sync_ref_model": True, "ref_model_sync_steps": 2}
    ),
    Setting(
        "grpo, dynamic sampling, two rewards",
        GRPOConfig,
        "prompts",
        {
            "num_generations": 4,
            "max_completion_length": 10,
            "reward": ["REWARDS:wordy", "REWARDS:drawn"],
            "dynamic_sampling": True,
            "generation_batch_size": 16,
            "beta": 0.05,
            "ref_model": "other",
        },
    ),
    Setting(
        "ppo, value head",
        PPOConfig,
        "prompts",
        {"max_completion_length": 10, "reward": ["REWARDS:wordy"], "num_ppo_epochs": 2, "value_head": True},
    ),
    Setting(
        "gkd, half on its own completions",
        GKDConfig,
        "chats",
        {"teacher_model_name_or_path": "other", "lmbda": 0.5, "max_completion_length": 10},
    ),
    Setting(
        "grpo, async, no staleness",
        GRPOConfig,
        "prompts",
        {
            "model": "talker",
            "num_generations": 4,
            "max_completion_length": 24,
            "reward": ["REWARDS:wordy"],
            "rollouts": "async",
            "max_staleness": 0,
        },
        by_hand=True,
    ),
    Setting("sft, DDP", SFTConfig, "texts", {"distributed_strategy": "ddp", "per_device_train_batch_size": 4}, ranks=2),
    Setting(
        "dpo, FSDP2",
        DPOConfig,
        "pairs",
        {"distributed_strategy": "fsdp2", "precompute_ref_log_probs": False, "per_device_train_batch_size": 4},
        ranks=2,
    ),
    Setting(
        "grpo, DDP, LoRA",
        GRPOConfig,
        "prompts",
        LORA
        | {
            "num_generations": 4,
            "max_completion_length": 10,
            "reward": ["REWARDS:wordy"],
            "distributed_strategy": "ddp",
            "generation_batch_size": 16,
            "per_device_train_batch_size": 4,
        },
        ranks=2,
    ),
]

# An epoch of prompts with completions of differing lengths, many of which are under way when weights change.
ONCE = {
    "model": "talker",
    "num_generations": 4,
    "max_completion_length": 48,
    "reward": ["REWARDS:wordy"],
    "num_train_epochs": 1,
    "max_steps": -1,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 16,
    "logged_completions": 2,
    "eval_steps": 10,
}
AHEAD = [
    Setting("overlap", GRPOConfig, "prompts", ONCE | {"rollouts": "overlap", "max_staleness": 1}),
    Setting("async", GRPOConfig, "prompts", ONCE | {"rollouts": "async", "max_staleness": 1}),
    Setting("async, two steps", GRPOConfig, "prompts", ONCE | {"rollouts": "async", "max_staleness": 2}),
]


def files(folder: Path) -> None:
    """Write the models, rows and rewards that the settings share."""
    save_tiny(folder / "model")
    save_tiny(folder / "other", tiny_llama(seed=3))
    save_tiny(folder / "talker", talker())
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    noise = random.Random(4)
    texts = [{"prompt": f"{sentence(noise, 8)}? ", "completion": sentence(noise, 9)} for _ in range(60)]
    write_rows(folder / "texts.jsonl", texts)
    write_rows(folder / "pairs.jsonl", preference_texts() * 2)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in texts])
    chats = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in texts]
    write_rows(
        folder / "chats.jsonl",
        [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats],
    )


def talker() -> torch.nn.Module:
    """A model whose completions end at any length: the end of a text is about as likely as common tokens."""
    model = tiny_llama()
    with torch.no_grad():
        head = model.lm_head.weight
        head *= 0.35
        head[model.config.eos_token_id] = 4 * head[[40, 45, 161, 221]].mean(0)
    return model


def config_of(setting: Setting, shared: Path, output_dir: Path) -> RunConfig:
    """The run of a setting: twelve steps, a checkpoint at every third, two evaluations."""
    named: dict[str, Callable[[Any], Any]] = {
        "model": lambda name: str(shared / name),
        "ref_model": lambda name: str(shared / name),
        "teacher_model_name_or_path": lambda name: str(shared / name),
        "reward": lambda names: [name.replace("REWARDS", str(shared / "rewards.py")) for name in names],
    }
    fields = {name: named[name](value) if name in named else value for name, value in setting.fields.items()}
    given = {
        "model": str(shared / "model"),
        "dataset": str(shared / f"{setting.rows}.jsonl"),
        "eval_dataset": str(shared / f"{setting.rows}.jsonl"),
        "eval_max_rows": 4,
        "eval_steps": 5,
        "output_dir": str(output_dir),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "progress": "quiet",
    }
    return setting.config_class(**(given | fields))
