"""Tiny models, fixed completions with fixed rewards, and runs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ft_rloo.config import RLOOConfig

from ft_host.api import Completion
from ft_host.testing import END, LONGEST, Rewards, fixed_completions, reward_metrics, sentence, tiny_run, tiny_tokenizer

NAMES = ("first", "second")  # of the two reward functions


def rewards_of(completion_ids: list[int]) -> tuple[float | None, float | None]:
    """What two reward functions make of a completion: anything that depends on its tokens alone. Some say nothing."""
    total, size = sum(completion_ids), len(completion_ids)
    first = None if total % 7 == 0 else total % 11 / 4 - 1
    second = None if first is None and total % 2 else (total * size) % 5 / 2
    return first, second


@dataclass
class Answers:
    """What ft_rollout is handed, with completions and rewards that are known."""

    config: RLOOConfig
    tokenizer: Any = field(default_factory=tiny_tokenizer)
    rewards: Callable[[list[int]], tuple[float | None, ...]] = rewards_of

    def generate(self, rows: list[dict], generations: int) -> list[Completion]:
        return [
            Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason="stop" if ids[-1] == END else "length")
            for row in rows
            for ids in fixed_completions(row["prompt"], generations)
        ]

    def reward(self, rows: list[dict], completions: list[Completion]) -> Rewards:
        values = [list(self.rewards(each.token_ids)) for each in completions]
        names = list(NAMES[: len(values[0])])
        metrics = {}
        for index, name in enumerate(names):
            metrics |= reward_metrics(name, [each[index] for each in values])
        return Rewards(
            names=names,
            weights=self.config.reward_weights or [1.0] * len(names),
            values=values,
            metrics=metrics,
            texts=[self.tokenizer.decode(each.token_ids) for each in completions],
            extra={"size": [len(each.token_ids) for each in completions]},
        )


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? "} for _ in range(24)]


REWARD = '''
def letters(completions, **columns):
    """What a tiny model can be paid for: the share of letters in what it says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., RLOOConfig]:
    """A config on rows: five steps of four completions, in order, at a learning rate and a clipping that matter."""
    file = tmp_path / "pays.py"
    file.write_text(REWARD, encoding="utf-8")
    given = {"reward": [f"{file}:letters"], "max_completion_length": LONGEST}
    return lambda rows, **fields: partial(tiny_run, RLOOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return fixed_completions
