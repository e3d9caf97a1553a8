"""The numbers of this package beside those of TRL's CPOTrainer: steps on the same model, rows and settings."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from ft_simpo.config import LOSS_TYPES, SimPOConfig

from ft_host.testing import (
    assert_parity,
    lines,
    preference_texts,
    run_in,
    tiny_run,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = ("loss_type", "beta", "simpo_gamma", "cpo_alpha", "label_smoothing", "alpha", "max_length", "disable_dropout")
METRICS = tuple(name for name in SimPOConfig.metrics if name not in ("rewards/accuracies", "nll_loss"))
ABSOLUTE = 5e-6  # of differences of log-probs that may be next to 0


@pytest.fixture
def make(llama, tmp_path):
    return lambda **fields: tiny_run(
        SimPOConfig,
        llama,
        tmp_path,
        preference_texts(),
        **({"max_steps": 3, "per_device_train_batch_size": 8} | fields),
    )


def theirs_of(config: SimPOConfig) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    tokenizer.bos_token = None  # theirs puts it before prompts to which this tokenizer itself doesn't add it
    trainer = CPOTrainer(
        model=trl_model(config),
        args=CPOConfig(**trl_arguments(config, *OWN)),
        train_dataset=trl_rows(config.dataset),
        processing_class=tokenizer,
    )
    return trl_trajectory(trainer)


CASES = {
    **{name: {"loss_type": name, "beta": 2.0 if name == "simpo" else 0.1} for name in LOSS_TYPES},
    "CPO": {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    "CPO-SimPO": {"cpo_alpha": 0.5, "simpo_gamma": 1.0, "label_smoothing": 0.1},
    "AlphaPO": {"alpha": 0.1, "beta": 2.5},
}


@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_metrics(make, name):
    config = make(**CASES[name])
    ours = lines(run_in(config, "ours"))
    theirs = theirs_of(config)
    assert_parity(ours, theirs, num_tokens=None)
    for a, b in zip(ours, theirs, strict=True):
        for metric in METRICS:
            same = math.isclose(a[metric], b[metric], rel_tol=1e-5, abs_tol=ABSOLUTE)
            assert same, (a["step"], metric, a[metric], b[metric])
        assert a["rewards/accuracies"] == b["rewards/accuracies"]
        # with cpo_alpha 0 theirs logs 0; ours is what it would be
        assert a["nll_loss"] == pytest.approx(b["nll_loss"], rel=1e-5) if config.cpo_alpha else b["nll_loss"] == 0
    # theirs are means over prompts, completions and padding
    assert set(theirs[0]) - set(ours[0]) <= {"total_flos", "train_loss", "logits/chosen", "logits/rejected"}


def test_defaults_are_those_of_trl_or_declared():
    from trl.experimental.cpo import CPOConfig

    known = {each.name: each.default for each in dataclasses.fields(CPOConfig)}
    for name in OWN:
        declared = SimPOConfig.trl_defaults.get(name, (getattr(SimPOConfig(), name),))[0]
        assert declared == known[name], name
