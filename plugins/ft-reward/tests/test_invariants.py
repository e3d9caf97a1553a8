"""What must not change the numbers of reward modelling: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ft_reward.config import RewardConfig

from ft_host.testing import as_classifier, invariants, save_tiny, tiny_moe, write_rows

ROUND_OFF = 1e-6  # of scores: one that is next to 0 is a sum of products that aren't


@pytest.fixture
def config(make, rows) -> RewardConfig:
    """Four steps of eight pairs over more than one epoch, in random order, margins in some rows, a pull to the centre,
    and an evaluation before and after, on pairs none of whose figures is so near to 0 that a relative difference would
    be of its round-off."""
    rows = [row | ({"margin": 0.1 * (index % 5)} if index % 3 else {}) for index, row in enumerate(rows)]
    made = make(
        rows,
        max_steps=4,
        train_sampling_strategy="random",
        per_device_train_batch_size=8,
        max_length=24,
        center_rewards_coefficient=0.01,
    )
    file = write_rows(Path(made.output_dir) / "eval.jsonl", rows[5:10])
    return dataclasses.replace(made, eval_dataset=str(file), eval_on_start=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"packing": True, "max_length": 60},
        {"train_sampling_strategy": "group_by_length"},
        {"use_peft": True},
        {"segment_attention": "none"},
    ],
    ids=["plain", "packed", "by length", "lora", "rectangle"],
)
def test_micro_batch_split(config, fields):
    invariants.micro_batch_split(dataclasses.replace(config, **fields), abs=ROUND_OFF)


def test_micro_batch_split_of_a_mixture_of_experts(config, tmp_path):
    """There is no router loss, so it splits as the others do."""
    model = save_tiny(tmp_path / "moe", as_classifier(tiny_moe(), seed=1))
    invariants.micro_batch_split(dataclasses.replace(config, model=str(model)), abs=ROUND_OFF)


def test_row_order(config):
    invariants.row_order(config, "reward")


def test_seeds(config, llama):
    """Of a language model too, whose new head is by the seed."""
    invariants.seeds(config)
    invariants.seeds(dataclasses.replace(config, model=str(llama), output_dir=f"{config.output_dir}-new-head"))


def test_lora_at_initialisation(config):
    invariants.lora_at_initialisation(config)


@pytest.mark.slow
@pytest.mark.nightly("classifier")
@pytest.mark.parametrize("head", ["new head", "classifier"])
def test_resume(config, llama, head):
    """Killed in the middle of an epoch, with dropout, so that random states count too."""
    config = dataclasses.replace(config, max_steps=16, save_steps=7, use_peft=True, lora_dropout=0.2)
    invariants.resume(dataclasses.replace(config, model=str(llama)) if head == "new head" else config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"distributed_strategy": "ddp"}, {"distributed_strategy": "fsdp2", "use_peft": True, "learning_rate": 1e-2}],
    ids=["ddp", "fsdp2 lora"],
)
def test_process_count(config, fields):
    """With five evaluation pairs, which two processes can't share evenly."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields))


@pytest.mark.slow
def test_process_count_with_a_new_head(config, llama):
    """It is the same on every rank."""
    invariants.process_count(
        dataclasses.replace(config, model=str(llama), save_steps=2, seed=1, distributed_strategy="fsdp2")
    )


def test_streaming(config):
    """Rows that come as they are read, in order, give the numbers of rows whose length is known."""
    config = dataclasses.replace(config, train_sampling_strategy="sequential", max_steps=3)
    read, streamed = (
        invariants.lines(invariants.run_in(config, name, dataset_streaming=streaming))
        for name, streaming in (("read", False), ("streamed", True))
    )
    invariants.assert_same(read, streamed, rel=0, skip=("epoch",))
