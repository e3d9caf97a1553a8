"""Tiny models, fixed completions, and runs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_sdft.config import SDFTConfig

from ft_host.testing import LONGEST, fixed_completions, sentence, tiny_run


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [
        {"prompt": f"{sentence(noise, 8)}? ", "privileged_context": f"Such as: {sentence(noise, 9)}"} for _ in range(24)
    ]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SDFTConfig]:
    """A config on rows: five steps of four completions, in order, at a learning rate and a clipping that matter."""
    given = {"max_completion_length": LONGEST}
    return lambda rows, **fields: partial(tiny_run, SDFTConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return fixed_completions


@pytest.fixture
def make_fixed(make, rows, fixed_backend):
    """A config whose completions are fixed, from a backend that is installed for this test."""

    def made(given: list[dict] | None = None, **fields: Any) -> SDFTConfig:
        usual = {
            "backend": fixed_backend(generations=fields.get("num_generations", 1)),
            "per_device_train_batch_size": 8,
            "max_sampling_logp_difference": 1e3,
            "max_length": None,
        }
        return make(given or rows, **(usual | fields))

    return made
