"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_sft.config import SFTConfig

from ft_host.testing import rounds, sentence, tiny_run


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
        rows.append({"messages": messages + rounds(noise, noise.randint(1, 3), 6)})
    return rows


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SFTConfig]:
    """A config: five steps of four rows, in order, at a learning rate and a clipping that matter."""
    return partial(tiny_run, SFTConfig, llama, tmp_path)
