"""Tiny models, fixed completions with fixed rewards, and runs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_rloo.config import RLOOConfig

from ft_host.api import Completion
from ft_host.rollouts.rollout import Rewards, reward_metrics
from ft_host.testing.models import save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.rows import sentence, tiny_run

NAMES = ("first", "second")  # of the two reward functions
END = 7  # the token that ends a turn
SIZE = 12  # the longest completion


def rewards_of(completion_ids: list[int]) -> tuple[float | None, float | None]:
    """What two reward functions make of a completion: anything that depends on its tokens alone. Some say nothing."""
    total, size = sum(completion_ids), len(completion_ids)
    first = None if total % 7 == 0 else total % 11 / 4 - 1
    second = None if first is None and total % 2 else (total * size) % 5 / 2
    return first, second


def completions_of(prompt: str, count: int) -> list[list[int]]:
    """Completions of a prompt: anything that depends on its text alone. Every third is cut short."""
    noise = random.Random(prompt)
    found = []
    for index in range(count):
        size = SIZE if index % 3 == 2 else noise.randint(1, SIZE) - 1
        found.append([noise.randrange(8, 200) for _ in range(size)] + [END] * (index % 3 != 2))
    return found


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
            for ids in completions_of(row["prompt"], generations)
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
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama"), tiny_llama(), tiny_tokenizer())


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that isn't the policy, so that a KL is there from the first step."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.3)
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    return save_tiny(tmp_path_factory.mktemp("reference"), model, tiny_tokenizer())


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
    given = {"reward": [f"{file}:letters"], "max_completion_length": SIZE}
    return lambda rows, **fields: partial(tiny_run, RLOOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def fixed() -> Callable[[str, int], list[list[int]]]:
    return completions_of


@pytest.fixture
def ready() -> Callable[[RLOOConfig], Any]:
    return _ready


def _ready(config: RLOOConfig) -> Any:
    """A run with its policy and its reference, before the first rollout. Its folder is never written."""
    from accelerate import Accelerator
    from ft_rloo.method import ft_models

    from ft_host import data, registry
    from ft_host.api import Run
    from ft_host.models import load_policy
    from ft_host.models.aux_models import AuxModel
    from ft_host.rundir.folder import RunFolder

    tokenizer = data.load_tokenizer(config)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(config.seed)
    policy = load_policy(config, tokenizer, accelerator.device)
    run = Run(
        config=config,
        folder=RunFolder(config.output_dir),
        tokenizer=tokenizer,
        plugins=registry.session(registry.find("method", "rloo"), None),
        accelerator=accelerator,
        policy=policy,
        model=policy,
    )
    run.rollouts = config.rollout_plan(1)
    run.models = {role: AuxModel(spec, run) for role, spec in (ft_models(config) or {}).items()}
    return run
