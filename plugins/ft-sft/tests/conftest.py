"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ft_sft.config import SFTConfig

from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.parity import forget_accelerate

WORDS = "the quick brown fox jumps over a lazy dog step by small model learns question answer three apples".split()


def sentence(noise: random.Random, most: int) -> str:
    return " ".join(noise.choice(WORDS) for _ in range(noise.randint(1, most)))


@pytest.fixture(scope="session")
def texts() -> list[dict[str, Any]]:
    noise = random.Random(0)
    return [{"text": sentence(noise, 16)} for _ in range(24)]


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(1)
    return [{"prompt": f"{sentence(noise, 8)}? ", "completion": sentence(noise, 12)} for _ in range(24)]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Conversations of one to three rounds, some with a system message."""
    noise = random.Random(2)
    rows = []
    for index in range(24):
        messages = [{"role": "system", "content": sentence(noise, 4)}] if index % 3 == 0 else []
        for _ in range(noise.randint(1, 3)):
            messages.append({"role": "user", "content": sentence(noise, 6)})
            messages.append({"role": "assistant", "content": sentence(noise, 6)})
        rows.append({"messages": messages})
    return rows


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    yield
    forget_accelerate()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SFTConfig]:
    """A config: five steps of four rows, in order, at a learning rate and a clipping that matter."""

    def make(rows: list[dict[str, Any]], **fields: Any) -> SFTConfig:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "model": str(llama), "dataset": str(file), "output_dir": str(tmp_path / "runs"), "use_cpu": True,
            "per_device_train_batch_size": 4, "max_steps": 5, "learning_rate": 1e-3, "save_steps": 0,
            "train_sampling_strategy": "sequential", "eval_on_start": False, "progress": "quiet",
        }  # fmt: skip
        return SFTConfig(**(given | fields))

    return make
