"""What must not change the numbers of RLOO: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
import math

import pytest
from ft_rloo.config import RLOOConfig

from ft_host.testing import invariants, lines, rollouts_ahead, run_in, same_as_sync

# Loss, KL and log-ratios are small beside what they are made of.
TOLERANCE, ABSOLUTE = 1e-4, 2e-6


@pytest.fixture
def config(make, prompts, reference) -> RLOOConfig:
    """Two rollouts of four prompts, four completions each, in two steps that are gone through once."""
    return make(
        prompts,
        max_steps=4,
        per_device_train_batch_size=8,
        num_generations=4,
        generation_batch_size=16,
        ref_model=str(reference),
        train_sampling_strategy="random",
    )


# One update a rollout: the gradient is made in the forward pass.
ONCE = {"generation_batch_size": 8, "max_steps": 2}
LORA = {"use_peft": True, "ref_model": None, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    "fields",
    [{}, ONCE, {"num_iterations": 2, "normalize_advantages": True}, LORA, {"mask_truncated_completions": True}],
    ids=["two steps", "one step", "two passes", "lora", "masked"],
)
def test_micro_batch_split(config, fields):
    invariants.micro_batch_split(dataclasses.replace(config, **fields), rel=TOLERANCE, abs=ABSOLUTE)


def test_row_order(config):
    invariants.row_order(config, abs=1e-6)


def test_rollouts_ahead(config):
    rollouts_ahead(config)


@pytest.mark.slow
def test_without_staleness_it_is_the_synchronous_run(config):
    same_as_sync(config)


def test_seeds(config):
    invariants.seeds(config)


def test_lora_begins_at_the_reference(config):
    """With LoRA the reference is the policy with its adapter off: the first KL is 0, and later ones are not."""
    found = lines(run_in(dataclasses.replace(config, **(LORA | ONCE | {"max_steps": 3})), "lora"))
    assert abs(found[0]["kl"]) < 1e-6 < abs(found[2]["kl"])


def test_rollouts_and_passes(config):
    """A rollout is 2 × 2 steps. In the first of them nothing is clipped, and the line tells of the rollout."""
    found = lines(run_in(dataclasses.replace(config, num_iterations=2, max_steps=8, epsilon=0.01), "passes"))
    for step in (0, 4):
        assert found[step]["clip_ratio/region_mean"] == 0
        assert math.isfinite(found[step]["reward"]) and "completions/mean_length" in found[step]
        assert "reward" not in found[step + 1]
        assert max(line["clip_ratio/region_mean"] for line in found[step + 1 : step + 4]) > 0
    for line in found:  # what samples is the policy itself
        assert line["sampling/sampling_logp_difference/max"] < 1e-4


@pytest.mark.slow
@pytest.mark.nightly("lora")
@pytest.mark.parametrize("fields", [{}, LORA | {"lora_dropout": 0.2}], ids=["all weights", "lora"])
def test_resume(config, fields):
    """Killed in the middle of a rollout: its completions, old log-probs and advantages are in the checkpoint."""
    invariants.resume(dataclasses.replace(config, max_steps=12, save_steps=5, num_iterations=3, **fields))


@pytest.mark.slow
@pytest.mark.nightly("ddp lora", "fsdp2")
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp", "normalize_advantages": True},
        {"distributed_strategy": "fsdp2"},
        {"distributed_strategy": "ddp"} | LORA,
    ],
    ids=["ddp", "fsdp2", "ddp lora"],
)
def test_process_count(config, fields):
    """Two processes sample the same completions, compare those of a prompt, and have one gradient."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields), rel=TOLERANCE, abs=ABSOLUTE)
