"""What must not change the numbers of best of n."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ft_bon.config import BestOfNConfig

from ft_host.testing import invariants, lines, run_in


@pytest.fixture
def config(make):
    return make(BestOfNConfig, per_device_train_batch_size=8, max_steps=2, learning_rate=1e-4, min_reward=0.3)


def test_micro_batch_split(config):
    invariants.micro_batch_split(config, abs=1e-6)


def test_row_order(config):
    invariants.row_order(config, abs=1e-6)


def test_it_learns_what_is_paid(make):
    config = make(BestOfNConfig, per_device_train_batch_size=4, max_steps=40, learning_rate=3e-3)
    found = [line["reward"] for line in lines(run_in(config, "longer"))]
    assert sum(found[-10:]) > sum(found[:10]) + 0.5


@pytest.mark.slow
def test_seeds_and_resume(config):
    invariants.seeds(replace(config, train_sampling_strategy="random"))
    invariants.resume(replace(config, max_steps=8, save_steps=3))
