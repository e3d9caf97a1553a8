"""Tiny models, completions and runs that the tests of this package share."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_ppo.config import PPOConfig

from ft_host.testing.models import as_classifier, save_tiny, tiny_llama, tiny_tokenizer
from ft_host.testing.rows import sentence, tiny_run

REWARD = '''
def wordy(completions, **columns):
    """What a tiny model can be paid for: the share of letters in what it says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''


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


@pytest.fixture
def ready() -> Callable[[PPOConfig], Any]:
    return _ready


def _ready(config: PPOConfig) -> Any:
    """A run with its policy, value model and reference, before the first rollout. Its folder is never written."""
    from accelerate import Accelerator
    from ft_ppo.method import ft_models

    from ft_host import data, registry
    from ft_host.api import Run
    from ft_host.models import load_policy
    from ft_host.models.aux_models import AuxModel
    from ft_host.models.load import attach_value
    from ft_host.rundir.folder import RunFolder

    tokenizer = data.load_tokenizer(config)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(config.seed)
    policy = load_policy(config, tokenizer, accelerator.device)
    specs = ft_models(config)
    attach_value(policy, specs.pop("value"), config, tokenizer, accelerator.device)
    run = Run(
        config=config,
        folder=RunFolder(config.output_dir),
        tokenizer=tokenizer,
        plugins=registry.session(registry.find("method", "ppo"), None),
        accelerator=accelerator,
        policy=policy,
        model=policy,
    )
    run.models = {role: AuxModel(spec, run) for role, spec in specs.items()}
    return run
