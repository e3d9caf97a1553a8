"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_kto.config import KTOConfig

from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.parity import forget_accelerate

WORDS = "the quick brown fox jumps over a lazy dog step by small model learns question answer three apples".split()


def sentence(noise: random.Random, most: int) -> str:
    return " ".join(noise.choice(WORDS) for _ in range(noise.randint(1, most)))


@pytest.fixture(scope="session")
def judged() -> list[dict[str, Any]]:
    """Completions marked good or bad; each prompt has one."""
    noise = random.Random(0)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "completion": sentence(noise, 10), "label": noise.random() < 0.6}
        for _ in range(40)
    ]


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, Any]]:
    noise = random.Random(1)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "chosen": sentence(noise, 10), "rejected": sentence(noise, 10)}
        for _ in range(20)
    ]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Judged turns of conversations of one or two rounds, some with a system message."""
    noise = random.Random(2)
    rows = []
    for index in range(20):
        messages = [{"role": "system", "content": sentence(noise, 4)}] if index % 3 == 0 else []
        for _ in range(noise.randint(0, 1)):
            messages.append({"role": "user", "content": sentence(noise, 6)})
            messages.append({"role": "assistant", "content": sentence(noise, 6)})
        messages.append({"role": "user", "content": sentence(noise, 6)})
        said = [{"role": "assistant", "content": sentence(noise, 8)}]
        rows.append({"prompt": messages, "completion": said, "label": noise.random() < 0.5})
    return rows


@pytest.fixture(autouse=True)
def accelerate_state() -> Iterator[None]:
    yield
    forget_accelerate()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, so that log-probs made ahead are made."""
    monkeypatch.setenv("FT_HOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that isn't the policy: its logits are flatter, so that they part in the first step already."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.3)
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    return save_tiny(tmp_path_factory.mktemp("reference"), model, tiny_tokenizer())


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., KTOConfig]:
    """A config: five steps of four rows, in order, at a learning rate and a clipping that matter."""

    def make(rows: list[dict[str, Any]], **fields: Any) -> KTOConfig:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "model": str(llama), "dataset": str(file), "output_dir": str(tmp_path / "runs"), "use_cpu": True,
            "per_device_train_batch_size": 4, "max_steps": 5, "learning_rate": 1e-3, "save_steps": 0,
            "train_sampling_strategy": "sequential", "eval_on_start": False, "progress": "quiet",
        }  # fmt: skip
        return KTOConfig(**(given | fields))

    return make
