"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_dpo.config import DPOConfig

from ft_host.testing import preference_chats, preference_texts, save_adapter, tiny_run


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Pairs of texts; lengths differ within a pair, either way round."""
    return preference_texts()


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Pairs of answers to conversations of one or two rounds, some with a system message."""
    return preference_chats()


@pytest.fixture(scope="session")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose B is not zero: as a reference it differs from the model under it, and from a trained copy."""
    return save_adapter(llama, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., DPOConfig]:
    """A config: five steps of four pairs, in order, at a learning rate and a clipping that matter."""
    return partial(tiny_run, DPOConfig, llama, tmp_path)
