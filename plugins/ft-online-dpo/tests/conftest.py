"""What `ft_rollout` is handed: completions of prompts and their rewards, without a model or a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ft_host.api import Completion
from ft_host.testing import Rewards, tiny_run

REWARD = '''
def wordy(completions, **columns):
    """What a tiny model can be paid for: the share of letters in what it says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]


def same(completions, **columns):
    return [0.5 for _ in completions]
'''


@dataclass
class Answers:
    config: Any
    earned: list[float | None]  # those of a prompt next to each other

    @property
    def prompts(self) -> list[dict[str, Any]]:
        count = len(self.earned) // self.config.num_generations
        return [{"group": g, "prompt_ids": [8 + g, 9], "prompt": f"p{g}", "columns": {}} for g in range(count)]

    def generate(self, rows: list[dict], generations: int) -> list[Completion]:
        """The ids of completion i begin with 20 + i; the odd ones are cut short, the others end in EOS."""
        return [
            Completion(
                token_ids=[20 + index, *range(40, 40 + index % 3), 39 if index % 2 else 7],
                logprobs=[-1.0] * (2 + index % 3),
                finish_reason="length" if index % 2 else "stop",
            )
            for index in range(len(rows) * generations)
        ]

    def reward(self, rows: list[dict], completions: list[Completion]) -> Rewards:
        texts = [f"text {each.token_ids[0]}" for each in completions]
        values = [[value] for value in self.earned]
        return Rewards(names=["r"], weights=[1.0], values=values, texts=texts, metrics={}, extra={})


@pytest.fixture(scope="session")
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def rewards(tmp_path) -> str:
    file = tmp_path / "pays.py"
    file.write_text(REWARD, encoding="utf-8")
    return str(file)


@pytest.fixture
def make(llama, tmp_path, rewards):
    """A run of two prompts a step, of four completions each."""

    def made(config_class: type, **fields: Any) -> Any:
        usual = {
            "reward": [f"{rewards}:wordy"],
            "max_completion_length": 8,
            "num_generations": 4,
            "per_device_train_batch_size": 2,
        }
        rows = [{"prompt": f"apples {number}? "} for number in range(8)]
        return tiny_run(config_class, llama, tmp_path, rows, **(usual | fields))

    return made
