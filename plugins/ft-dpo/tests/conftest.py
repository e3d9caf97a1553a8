"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ft_dpo.config import DPOConfig

from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.parity import forget_accelerate

WORDS = "the quick brown fox jumps over a lazy dog step by small model learns question answer three apples".split()


def sentence(noise: random.Random, most: int) -> str:
    return " ".join(noise.choice(WORDS) for _ in range(noise.randint(1, most)))


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Pairs of texts; lengths differ within a pair, either way round."""
    noise = random.Random(0)
    return [
        {"prompt": f"{sentence(noise, 8)}?", "chosen": f" {sentence(noise, 9)}", "rejected": f" {sentence(noise, 9)}"}
        for _ in range(24)
    ]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Pairs of answers to conversations of one or two rounds, some with a system message."""
    noise = random.Random(1)
    found = []
    for index in range(24):
        prompt = [{"role": "system", "content": sentence(noise, 4)}] if index % 3 == 0 else []
        for _ in range(index % 2):
            prompt.append({"role": "user", "content": sentence(noise, 5)})
            prompt.append({"role": "assistant", "content": sentence(noise, 5)})
        prompt.append({"role": "user", "content": sentence(noise, 6)})
        answers = {name: [{"role": "assistant", "content": sentence(noise, 8)}] for name in ("chosen", "rejected")}
        found.append({"prompt": prompt, **answers})
    return found


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    yield
    forget_accelerate()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose B is not zero: as a reference it differs from the model under it, and from a trained copy."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., DPOConfig]:
    """A config: five steps of four pairs, in order, at a learning rate and a clipping that matter."""

    def make(rows: list[dict[str, Any]], **fields: Any) -> DPOConfig:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "model": str(llama), "dataset": str(file), "output_dir": str(tmp_path / "runs"), "use_cpu": True,
            "per_device_train_batch_size": 4, "max_steps": 5, "learning_rate": 1e-3, "save_steps": 0,
            "train_sampling_strategy": "sequential", "eval_on_start": False, "progress": "quiet",
        }  # fmt: skip
        return DPOConfig(**(given | fields))

    return make
