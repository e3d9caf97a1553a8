"""The numbers of this package beside those of TRL's ORPOTrainer: five steps on the same model, rows and settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from ft_orpo.config import ORPOConfig

from ft_host.testing import (
    assert_parity,
    assert_same,
    lines,
    preference_texts,
    run_in,
    tiny_run,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

METRICS = tuple(name for name in ORPOConfig.metrics if name != "rewards/accuracies")
# Differences of log-probs of about 5 may be next to 0.
ABSOLUTE = 2e-6


@pytest.fixture
def make(llama, tmp_path):
    return lambda **fields: tiny_run(ORPOConfig, llama, tmp_path, preference_texts(), **fields)


def theirs_of(config: ORPOConfig) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig as Theirs
    from trl.experimental.orpo import ORPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    tokenizer.bos_token = None  # theirs puts it before prompts to which this tokenizer itself doesn't add it
    trainer = ORPOTrainer(
        model=trl_model(config),
        args=Theirs(**trl_arguments(config, "beta", "max_length", "disable_dropout")),
        train_dataset=trl_rows(config.dataset),
        processing_class=tokenizer,
    )
    return trl_trajectory(trainer)


@pytest.mark.parametrize(
    "fields", [{}, {"beta": 1.0}, {"max_length": 24, "max_dropped_share": 0.5}], ids=["defaults", "beta", "cut"]
)
def test_loss_gradient_and_metrics(make, fields):
    config = make(**fields)
    ours = lines(run_in(config, "ours"))
    theirs = theirs_of(config)
    assert_parity(ours, theirs, num_tokens=None)
    for a, b in zip(ours, theirs, strict=True):
        for name in METRICS:
            assert math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=ABSOLUTE), (a["step"], name, a[name], b[name])
        assert a["rewards/accuracies"] == b["rewards/accuracies"]
    # theirs are means over prompts, completions and padding
    assert set(theirs[0]) - set(ours[0]) <= {"total_flos", "train_loss", "logits/chosen", "logits/rejected"}


def test_trls_loss_depends_on_the_split_and_ours_does_not(make):
    """Its likelihood is a mean over the tokens of a micro-batch, and a micro-batch of short rows counts as much as one
    of long ones."""
    config = make(max_steps=2)
    split = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    ours = lines(run_in(config, "ours"))
    assert_same(ours, lines(run_in(split, "split")), rel=2e-5, abs=ABSOLUTE)
    theirs, theirs_split = theirs_of(config), theirs_of(split)
    assert math.isclose(theirs[0]["loss"], ours[0]["loss"], rel_tol=1e-5)
    assert abs(theirs[0]["loss"] - theirs_split[0]["loss"]) > 1e-3


def test_defaults_are_those_of_trl():
    from trl.experimental.orpo import ORPOConfig as Theirs

    known = {each.name: each.default for each in dataclasses.fields(Theirs)}
    for name in ("beta", "learning_rate", "disable_dropout", "max_length"):
        assert getattr(ORPOConfig(), name) == known[name], name
