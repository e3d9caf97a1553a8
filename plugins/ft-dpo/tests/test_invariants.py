"""What must not change the numbers of preference learning: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from ft_dpo.config import DPOConfig

from ft_host.testing import assert_same, invariants, lines, run_in, save_tiny, tiny_llama, tiny_tokenizer, write_rows

# A reward is a difference of log-probs of about -50, whose round-off is 4e-6 each. While policy and reference are the
# same model there is nothing else in it, and which of two rewards is larger is a toss: so the reference of these runs
# is another model. Means of rewards may be near 0 all the same, and are held to an absolute tolerance. Gradients of a
# loss of rewards are held to twice what those of single log-probs are.
TOLERANCE, ABSOLUTE = 5e-5, 2e-6


@pytest.fixture
def config(make, rows, tmp_path) -> DPOConfig:
    """Four steps of eight pairs over more than one epoch, in random order, with an evaluation before and after."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3), tiny_tokenizer())
    made = make(
        rows,
        max_steps=4,
        train_sampling_strategy="random",
        per_device_train_batch_size=8,
        max_length=24,
        max_dropped_share=0.5,
        ref_model=str(other),
    )
    file = write_rows(Path(made.output_dir) / "eval.jsonl", rows[:5])
    return dataclasses.replace(made, eval_dataset=str(file), eval_on_start=True)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"precompute_ref_log_probs": False},
        {"loss_type": ["sigmoid", "aot_unpaired", "sft"], "loss_weights": [1.0, 0.5, 0.1]},
        {"loss_type": "aot", "use_peft": True},
        {"ld_alpha": 0.5, "use_weighting": True, "loss_type": "ipo"},
        {"reference_free": True, "ref_model": None},
        {"sync_ref_model": True, "ref_model_sync_steps": 2},
        {"train_sampling_strategy": "group_by_length"},
        {"segment_attention": "none"},
    ],
    ids=[
        "ahead",
        "live",
        "sorted",
        "sorted lora",
        "weights",
        "reference free",
        "synchronised",
        "by length",
        "rectangle",
    ],
)
def test_micro_batch_split(config, fields):
    invariants.micro_batch_split(dataclasses.replace(config, **fields), rel=TOLERANCE, abs=ABSOLUTE)


def test_micro_batch_split_of_packed_pairs(config):
    """A row of the batch is a block of pairs."""
    invariants.micro_batch_split(dataclasses.replace(config, packing=True, max_length=48), rel=TOLERANCE, abs=ABSOLUTE)


@pytest.mark.parametrize("name", ["sigmoid", "aot", "aot_unpaired", "sft"])
def test_row_order(config, name):
    invariants.row_order(dataclasses.replace(config, loss_type=name), "dpo")


def test_seeds(config):
    invariants.seeds(config)


@pytest.mark.parametrize("ahead", [True, False])
def test_lora_at_initialisation(config, ahead):
    invariants.lora_at_initialisation(dataclasses.replace(config, precompute_ref_log_probs=ahead))


@pytest.mark.parametrize("fields", [{}, {"use_peft": True}, {"precompute_ref_log_probs": False}])
def test_the_first_step(make, rows, fields):
    """Policy and reference are the same: the loss is ln 2, and no reward differs from 0."""
    first = lines(run_in(make(rows, max_steps=1, **fields), "first"))[0]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    for name in ("chosen", "rejected", "margins"):
        assert abs(first[f"rewards/{name}"]) < 5e-6


def test_reference_free(make, rows):
    """No reference: a reward is beta times the log-prob itself, and no model is asked for."""
    config = make(rows, reference_free=True)
    for line in lines(run_in(config, "free")):
        for name in ("chosen", "rejected"):
            assert line[f"rewards/{name}"] == pytest.approx(0.1 * line[f"logps/{name}"], rel=1e-6)
    assert not invariants.first_step(config, "dpo")[0].models


@pytest.mark.parametrize("name", ["sigmoid", "aot_unpaired", "sft"])
def test_evaluation_does_not_depend_on_its_batches(config, name):
    config = dataclasses.replace(config, loss_type=name, max_steps=1)
    one, all_of_them = (lines(run_in(config, f"by {size}", per_device_eval_batch_size=size), "eval") for size in (1, 5))
    assert_same(one, all_of_them, rel=TOLERANCE, abs=ABSOLUTE)


def test_kept_log_probs_are_of_one_ld_alpha(make, rows):
    """What an earlier run kept with other weights is not what this one takes: policy and reference are the same."""
    for ld_alpha in (None, 0.4):
        first = lines(run_in(make(rows, max_steps=1, ld_alpha=ld_alpha), f"ld {ld_alpha}"))[0]
        assert abs(first["rewards/chosen"]) < 5e-6


def test_streamed(config):
    """A stream of the same rows: the reference is asked at each step."""
    config = dataclasses.replace(config, train_sampling_strategy="sequential")
    streamed = run_in(config, "streamed", dataset_streaming=True)
    assert_same(lines(run_in(config, "read")), lines(streamed), rel=TOLERANCE, abs=ABSOLUTE, skip=("epoch",))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "aot_unpaired"])
def test_resume(config, name):
    """Killed in the middle of an epoch, with dropout, so that random states count too."""
    invariants.resume(
        dataclasses.replace(config, max_steps=16, save_steps=7, use_peft=True, lora_dropout=0.2, loss_type=name)
    )


@pytest.mark.slow
@pytest.mark.nightly("fsdp2 live", "ddp lora sorted")
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp"},
        {"distributed_strategy": "fsdp2", "precompute_ref_log_probs": False},
        {"distributed_strategy": "ddp", "use_peft": True, "learning_rate": 1e-2, "loss_type": "aot_unpaired"},
        {"distributed_strategy": "fsdp2", "use_peft": True, "learning_rate": 1e-2, "loss_type": "aot"},
    ],
    ids=["ddp", "fsdp2 live", "ddp lora sorted", "fsdp2 lora sorted"],
)
def test_process_count(config, fields):
    """With five evaluation rows, which two processes can't share evenly."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields), rel=TOLERANCE, abs=ABSOLUTE)
