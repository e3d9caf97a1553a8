"""What must not change the numbers of gold: the checks of ft_host.testing."""

from __future__ import annotations

import dataclasses

import pytest
from ft_gold.config import GOLDConfig

from ft_host.models import against as tiling
from ft_host.testing import invariants
from ft_host.testing.invariants import assert_same, lines, run_in

TOLERANCE, ABSOLUTE = 1e-4, 2e-6


@pytest.fixture
def mixed(make, chats) -> GOLDConfig:
    """A share of the prompts is the policy's to complete; the others have the completion of their row."""
    return make(chats, max_steps=4, train_sampling_strategy="random")


KINDS = {
    "mixed": {"uld_crossentropy_weight": 0.5},
    "of the data, bayesian": {"lmbda": 0.0, "uld_token_merge_strategy": "bayesian", "beta": 0.0},
    "sorted": {"uld_use_hybrid_loss": False, "uld_student_temperature": 0.7, "uld_crossentropy_weight": 0.3},
    "by position": {"use_extended_uld": False, "lmbda": 0.0, "uld_skip_student_eos": True, "uld_skip_teacher_eos": True},
    "by the teacher": {"lmbda": 0.3, "seq_kd": True},
    "lora": {"use_peft": True, "learning_rate": 1e-2, "beta": 1.0},
    "the same tokens": {},
}


@pytest.fixture
def config(request, mixed, relative):
    kind = request.param
    more = {"teacher_model_name_or_path": str(relative)} if kind == "the same tokens" else {}
    return dataclasses.replace(mixed, **KINDS[kind], **more)


ALL = pytest.mark.parametrize("config", KINDS, indirect=True)


@ALL
def test_micro_batch_split(config):
    invariants.micro_batch_split(config, rel=TOLERANCE, abs=ABSOLUTE)


@pytest.mark.parametrize("config", ["mixed", "sorted", "of the data, bayesian"], indirect=True)
def test_tiles(config, monkeypatch):
    """A unit or two at a time, or all at once."""
    whole = lines(run_in(config, "whole"))
    monkeypatch.setattr(tiling, "_tiles", lambda count, *_: [(0, min(count, 3))])
    assert_same(whole, lines(run_in(config, "tiles")), TOLERANCE, ABSOLUTE)


@pytest.mark.parametrize("config", ["mixed"], indirect=True)
def test_seeds(config):
    invariants.seeds(config)


def test_the_order_of_rows(mixed):
    """Of what gold is given of the data: held-out rows are laid out as they are."""
    invariants.row_order(dataclasses.replace(mixed, lmbda=0.0), "gold")
