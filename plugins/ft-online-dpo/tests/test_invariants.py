"""What must not change the numbers of online DPO."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ft_online_dpo.config import OnlineDPOConfig

from ft_host.testing import invariants, lines, run_in, save_tiny, tiny_llama


@pytest.fixture
def config(make, tmp_path):
    """Against another model: of two equal ones, rewards are round-off."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3))
    return make(
        OnlineDPOConfig, per_device_train_batch_size=8, max_steps=2, learning_rate=1e-4, ref_model=str(other), beta=0.2
    )


def test_micro_batch_split(config):
    invariants.micro_batch_split(config, rel=5e-5, abs=2e-6)


def test_row_order(config):
    invariants.row_order(config, abs=2e-6)


def test_it_learns_what_is_paid(make):
    config = make(
        OnlineDPOConfig, per_device_train_batch_size=8, num_generations=4, max_steps=40, learning_rate=3e-3, beta=0.05
    )
    found = [line["reward"] for line in lines(run_in(config, "longer"))]
    assert sum(found[-10:]) > sum(found[:10]) + 0.5


@pytest.mark.slow
def test_seeds_and_resume(config):
    invariants.seeds(replace(config, train_sampling_strategy="random"))
    invariants.resume(replace(config, max_steps=8, save_steps=3))
