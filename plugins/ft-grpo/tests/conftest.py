"""Tiny models, completions whose tokens and rewards are known, and what the hooks make of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_grpo.config import GRPOConfig

from ft_host.api import Completion
from ft_host.testing import metric_values, ready_run, sentence, tiny_run, tiny_tokenizer

NAMES = ["right", "short"]  # of the reward functions that `Answers` stands for
REWARD = '''
def wordy(completions, **columns):
    """What a tiny model can be paid for: the share of letters in what it says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]


def short(completion_ids, **columns):
    return [1 / len(ids) for ids in completion_ids]
'''


@pytest.fixture(scope="session")
def prompts() -> list[dict[str, Any]]:
    noise = random.Random(4)
    return [{"prompt": f"{sentence(noise, 8)}? ", "number": index} for index in range(24)]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Callable[..., GRPOConfig]:
    """A config on rows: five rollouts of two prompts in order, of four completions each, a step each."""
    file = tmp_path / "pays.py"
    file.write_text(REWARD, encoding="utf-8")
    given = {
        "reward": [f"{file}:wordy", f"{file}:short"],
        "max_completion_length": 12,
        "temperature": 0.9,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
    }
    return lambda rows, **fields: partial(tiny_run, GRPOConfig, llama, tmp_path)(rows, **(given | fields))


@pytest.fixture(scope="session")
def known() -> Any:
    """The functions of this file that tests share."""
    return SimpleNamespace(answers=answers, made=made, nudge=nudge, gradient=gradient, Made=Made)


# ---------------------------------------------------------------- completions that are known


@dataclass
class Answers:
    """What ft_rollout is handed: completions of two prompts and their rewards, without a model or a process."""

    config: GRPOConfig
    prompts: list[dict[str, Any]]
    completions: list[Completion]
    values: list[list[float | None]]
    tokenizer: Any = field(default_factory=tiny_tokenizer)

    def generate(self, rows: list[dict], generations: int) -> list[Completion]:
        assert len(rows) * generations == len(self.completions)
        return self.completions

    def reward(self, rows: list[dict], completions: list[Completion]) -> Any:
        from ft_host.testing import Rewards, reward_metrics

        metrics: dict = {}
        for index, name in enumerate(NAMES):
            metrics |= reward_metrics(name, [each[index] for each in self.values])
        return Rewards(
            names=NAMES,
            weights=self.config.reward_weights or [1.0, 1.0],
            values=self.values,
            metrics=metrics,
            texts=[self.tokenizer.decode(each.token_ids) for each in completions],
            extra={},
        )


def answers(config: GRPOConfig, *, tools: bool = False, cut: tuple[int, ...] = (2, 5), groups: int = 2) -> Answers:
    """Completions of 3 to 10 tokens with rewards that differ. Those of places `cut` have no end; with `tools`, some
    have output of tools in the middle. What the sampler says of its tokens is somewhere near what the tiny model does.
    """
    noise = random.Random(9)
    prompts = [
        {
            "group": group,
            "prompt_ids": [noise.randrange(8, 200) for _ in range(3 + group)],
            "prompt": f"p{group}",
            "columns": {},
            "length": 3 + group,
        }
        for group in range(groups)
    ]
    completions, values = [], []
    for place in range(groups * config.num_generations):
        size = noise.randint(3, 10)
        ids = [noise.randrange(8, 200) for _ in range(size)]
        if place not in cut:
            ids[-1] = tiny_tokenizer().eos_token_id
        sampled = [not (tools and place % 3 == 0 and 0 < index < 2) for index in range(size)]
        logprobs = [noise.uniform(-7, -4) if own else 0.0 for own in sampled]
        completions.append(
            Completion(
                token_ids=ids,
                logprobs=logprobs,
                sampled=sampled if tools else [],
                finish_reason="length" if place in cut else "stop",
            )
        )
        values.append([round(noise.uniform(-1, 2), 3), round(noise.uniform(0, 20), 3)])
    return Answers(config, prompts, completions, values)


def nudge(model: torch.nn.Module, size: float = 0.008) -> None:
    """Stand in for an update, the same at every call: ratios of new and old policy go from 0.5 to 1.6."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@dataclass
class Made:
    """Of one micro-batch that is an optimizer step: loss, flat gradient and metrics, and the rows."""

    loss: float
    grad: torch.Tensor
    metrics: dict[str, float]
    rows: list[dict[str, Any]]


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def made(config: GRPOConfig, given: Answers, run: Any = None, steps: int = 1) -> Made:
    """What the hooks make of completions: from the rollout to loss and gradient. With more than one update a rollout,
    the policy changes before the loss. `steps`: as if the loss were asked for so often, one after the other."""
    from ft_grpo.method import ft_annotate, ft_collate, ft_loss, ft_rollout, ft_step

    run = run or ready_run(config)
    rollout = ft_rollout(given.prompts, given)
    rows = ft_annotate(rollout.rows, run)
    for step in range(steps):
        run.step = step
        if run.rollouts.updates > 1 or step:
            nudge(run.policy.model)
        of_step = ft_step(rows, run) or rows
        batch = ft_collate(of_step, run.tokenizer, config)
        run.totals = batch.counts
        run.policy.zero_grad()
        found = ft_loss(run.model, batch, run)
        loss = found.divide(run.totals)
        loss.backward()
    metrics = metric_values(rollout.metrics, found.metrics)
    return Made(float(loss.detach()), gradient(run.policy.model).clone(), metrics, of_step)
