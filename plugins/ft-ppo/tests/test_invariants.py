"""What must not change the numbers of PPO: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
import math

import pytest
from ft_ppo.config import PPOConfig

from ft_host.testing import invariants, lines, rollouts_ahead, run_in, same_as_sync

# Values of a new head and log-ratios are small beside what they are made of.
TOLERANCE, ABSOLUTE = 1e-4, 1e-6


@pytest.fixture
def config(make, prompts, reference) -> PPOConfig:
    """Two rollouts of eight prompts, gone through twice in one minibatch each."""
    return make(
        prompts,
        max_steps=4,
        per_device_train_batch_size=8,
        num_ppo_epochs=2,
        ref_model=str(reference),
        vf_coef=0.5,
        train_sampling_strategy="random",
    )


@pytest.mark.parametrize(
    "fields",
    [{}, {"value_head": True}, {"use_peft": True, "ref_model": None, "learning_rate": 1e-2}],
    ids=["value model", "value head", "lora"],
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
    invariants.seeds(dataclasses.replace(config, value_head=True))


def test_minibatches_and_passes(config):
    """Each rollout is 3 × 2 steps: the first is unclipped, and episodes grow by 12 a rollout."""
    config = dataclasses.replace(config, per_device_train_batch_size=4, num_mini_batches=3, max_steps=12, vf_coef=0.1)
    found = lines(run_in(config, "minibatches"))
    assert [line["episode"] for line in found] == [12.0] * 6 + [24.0] * 6
    for step in (0, 6):
        assert found[step]["policy/clipfrac_avg"] == 0
        assert found[step]["val/ratio"] == pytest.approx(1, abs=1e-5)
        assert found[step + 1]["val/ratio_var"] > 0
        assert found[step]["rewards/wordy/mean"] >= 0
        assert math.isfinite(found[step]["objective/kl"])
    for line in found:
        loss = line["loss/policy_avg"] + 0.1 * line["loss/value_avg"]
        assert line["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)
        reward = line["objective/scores"] + line["objective/non_score_reward"]
        assert line["objective/rlhf_reward"] == pytest.approx(reward, rel=1e-5)
        assert line["objective/non_score_reward"] == pytest.approx(-0.05 * line["objective/kl"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.nightly("value head lora")
@pytest.mark.parametrize(
    "fields",
    [{}, {"value_head": True, "use_peft": True, "lora_dropout": 0.2, "ref_model": None}],
    ids=["value model", "value head lora"],
)
def test_resume(config, fields):
    """Killed in the middle of a rollout: the value model, its optimizer state and the rows go on where they were."""
    config = dataclasses.replace(config, max_steps=12, save_steps=5, num_mini_batches=2, num_ppo_epochs=3)
    invariants.resume(dataclasses.replace(config, per_device_train_batch_size=4, **fields))


@pytest.mark.slow
@pytest.mark.nightly("ddp value head", "ddp lora", "fsdp2")
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp"},
        {"distributed_strategy": "ddp", "value_head": True, "whiten_rewards": True},
        {"distributed_strategy": "fsdp2"},
        {"distributed_strategy": "ddp", "use_peft": True, "learning_rate": 1e-2, "ref_model": None},
    ],
    ids=["ddp", "ddp value head", "fsdp2", "ddp lora"],
)
def test_process_count(config, fields):
    """Two processes sample the same completions, and whiten over both."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields), rel=TOLERANCE, abs=ABSOLUTE)
