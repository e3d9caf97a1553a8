"""Tiny models, rows and configs that the tests of this package share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_reward.config import RewardConfig

from ft_host.testing import (
    as_classifier,
    preference_chats,
    preference_texts,
    save_adapter,
    save_tiny,
    tiny_llama,
    tiny_run,
    tiny_tokenizer,
)


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Pairs of texts; lengths differ within a pair, either way round."""
    return preference_texts()


@pytest.fixture(scope="session")
def chats() -> list[dict[str, Any]]:
    """Pairs of answers to conversations of one or two rounds, some with a system message."""
    return preference_chats()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head: runs on it begin alike."""
    return save_tiny(tmp_path_factory.mktemp("classifier"), as_classifier(tiny_llama()), tiny_tokenizer())


@pytest.fixture(scope="session")
def adapter(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the classifier whose B is not zero, so that A and B have gradients from the first step."""
    return save_adapter(classifier, tmp_path_factory.mktemp("adapter"), "SEQ_CLS")


@pytest.fixture
def make(classifier: Path, tmp_path: Path) -> Callable[..., RewardConfig]:
    """A config: five steps of four pairs, in order, at a learning rate and a clipping that matter."""
    return partial(tiny_run, RewardConfig, classifier, tmp_path)
