"""A tiny student, a teacher with another tokenizer, fixed completions, and runs that the tests of this package
share."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_gold.config import GOLDConfig

from ft_host.testing import (
    END,
    LONGEST,
    other_tokenizer,
    rounds,
    save_tiny,
    sentence,
    tiny_llama,
    tiny_run,
    tiny_tokenizer,
)


def completion_of(prompt: str, place: int = 0) -> list[int]:
    """The completion of a prompt: anything that depends on its text and place alone. Every third is cut short."""
    noise = random.Random(f"{prompt}{place}")
    size = noise.choice([LONGEST, *range(LONGEST - 4)])
    return [noise.randrange(8, 200) for _ in range(size)] + [END] * (size < LONGEST)


@pytest.fixture
def fixed() -> Callable[..., list[int]]:
    return completion_of


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider than the student, with tokens of its own, and sure of something else."""
    torch.manual_seed(5)
    model = tiny_llama(hidden_size=96, vocab_size=200, eos_token_id=5)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.2)
    return save_tiny(tmp_path_factory.mktemp("teacher"), model, other_tokenizer())


@pytest.fixture(scope="session")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with the student's tokens."""
    return save_tiny(tmp_path_factory.mktemp("relative"), tiny_llama(seed=5, hidden_size=96), tiny_tokenizer())


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? "} for _ in range(40)]


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    noise = random.Random(2)
    return [{"messages": rounds(noise, noise.randint(1, 2), 6)} for _ in range(40)]


@pytest.fixture
def make(llama: Path, teacher: Path, tmp_path: Path) -> Callable[..., GOLDConfig]:
    """A config on rows: five steps of eight completions, in order, at a learning rate and a clipping that matter."""
    usual = {
        "max_completion_length": LONGEST,
        "teacher_model_name_or_path": str(teacher),
        "per_device_train_batch_size": 8,
    }

    def made(rows: list[dict], **fields: Any) -> GOLDConfig:
        return tiny_run(GOLDConfig, llama, tmp_path, rows, **(usual | fields))

    return made


@pytest.fixture
def backend(fixed_backend) -> str:
    """The name of a backend whose completions are fixed."""
    return fixed_backend(completion_of)
