"""Tiny models, completions and runs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_ppo.config import PPOConfig

from ft_host.testing import as_classifier, save_tiny, sentence, tiny_llama, tiny_run, tiny_tokenizer

REWARD = '''
def wordy(completions, **columns):
    """What a tiny model can be paid for: the share of letters in what it says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, for values to start from: what its head says is far from nought."""
    return save_tiny(tmp_path_factory.mktemp("scorer"), as_classifier(tiny_llama(seed=3)), tiny_tokenizer())


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? "} for _ in range(24)]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., PPOConfig]:
    """A config on rows: five steps of four prompts in order, at a learning rate and a clipping that matter."""
    file = tmp_path / "pays.py"
    file.write_text(REWARD, encoding="utf-8")
    given = {"reward": [f"{file}:wordy"], "max_completion_length": 12, "temperature": 0.9}
    return lambda rows, **fields: partial(tiny_run, PPOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def completions() -> list[dict[str, Any]]:
    """What ft_rollout gives: six completions, of which one is cut short, one has tool output in it, one is without a
    reward, and one is of a single token."""
    noise = random.Random(9)
    rows = []
    for group, (size, score) in enumerate([(5, 1.5), (9, -0.5), (7, 0.25), (4, None), (1, 2.0), (6, 0.0)]):
        ids = [noise.randrange(8, 200) for _ in range(size)]
        sampled = [score is not None] * size
        if group == 2:
            sampled[3:5] = [False, False]
        prompt = [noise.randrange(8, 200) for _ in range(3 + group)]
        rows.append(
            {
                "group": group,
                "prompt_ids": prompt,
                "completion_ids": ids,
                "sampled": sampled,
                "sampling_logps": [-1.0] * sum(sampled),
                "truncated": group == 1,
                "length": len(prompt) + size,
                "shared": len(prompt),
                "score": score,
            }
        )
    return rows
