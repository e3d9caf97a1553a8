"""Tiny models, fixed completions with fixed rewards, and runs that the tests of this package share."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_sdpo.config import SDPOConfig

from ft_host.testing import LONGEST, fixed_completions, sentence, tiny_run


def rewards_of(ids: list[int]) -> tuple[float | None, float | None]:
    """What two reward functions make of a completion: anything that depends on its tokens alone. A sum of 1 is a
    success."""
    first = (0.0, 0.5, 1.0)[sum(ids) % 3]
    return first, None if sum(ids) % 5 == 0 else 0.25 * (len(ids) % 2)


REWARDS = """
{rewards_of}

def first(completion_ids, **columns):
    return [rewards_of(ids)[0] for ids in completion_ids]

def second(completion_ids, **columns):
    return [rewards_of(ids)[1] for ids in completion_ids]
"""
PAYS = '''
def letters(completions, log_extra, **columns):
    """What a tiny model can be paid for, and what is said of it: of some completions nothing."""
    good = [sum(letter.isalpha() for letter in text) / (len(text) + 1) > 0.8 for text in completions]
    log_extra("feedback", [None if right or len(text) % 3 == 0 else f"{len(text)} is odd" for right, text in
                           zip(good, completions)])
    return [float(each) for each in good]
'''


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? ", "privileged_context": f"No: {sentence(noise, 9)}"} for _ in range(24)]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., SDPOConfig]:
    """A config on rows: five steps of two prompts, four completions each, at a learning rate and a clipping that
    matter."""
    file = tmp_path / "pays.py"
    file.write_text(PAYS, encoding="utf-8")
    given = {
        "max_completion_length": LONGEST,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "reward": [f"{file}:letters"],
    }
    return lambda rows, **fields: partial(tiny_run, SDPOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return fixed_completions


@pytest.fixture
def pays() -> Callable[[list[int]], tuple[float | None, float | None]]:
    return rewards_of


@pytest.fixture
def make_fixed(make, rows, fixed_backend, tmp_path):
    """A config whose completions and rewards are fixed, from a backend that is installed for this test."""
    told = tmp_path / "given.py"
    told.write_text(REWARDS.format(rewards_of=inspect.getsource(rewards_of)), encoding="utf-8")

    def made(given: list[dict] | None = None, **fields: Any) -> SDPOConfig:
        usual = {
            "backend": fixed_backend(generations=fields.get("num_generations", 4)),
            "max_sampling_logp_difference": 1e3,
            "max_length": None,
            "reward": [f"{told}:first", f"{told}:second"],
        }
        return make(given or rows, **(usual | fields))

    return made
