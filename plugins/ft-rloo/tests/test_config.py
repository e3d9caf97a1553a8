"""What can be known wrong of a config is refused by name, and what the fields come to."""

from __future__ import annotations

import dataclasses

import pytest
from ft_rloo.config import RLOOConfig
from ft_rloo.method import ft_models

from ft_host.api import ConfigError, ModelSpec, RolloutPlan

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "beta",
    "epsilon",
    "epsilon_high",
    "normalize_advantages",
    "reward_clip_range",
    "mask_truncated_completions",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "learning_rate",
    "max_completion_length",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
)


def test_defaults_are_trls():
    """Its config works two of them out of the batch size."""
    import trl

    theirs = {field.name: field.default for field in dataclasses.fields(trl.RLOOConfig)}
    assert {name: getattr(RLOOConfig(), name) for name in OWN} == {name: theirs[name] for name in OWN}


TWICE = {"num_iterations": 2}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward_clip_range": [1.0]}, r"reward_clip_range: found \[1.0\], expected two numbers"),
        ({"reward_clip_range": [2.0, 1.0]}, "reward_clip_range: .*the smaller one first"),
        ({"epsilon": 0.3}, "epsilon: has no effect where each rollout is used for one optimizer step"),
        ({"epsilon_high": 0.3}, "epsilon_high: has no effect where each rollout"),
        ({"beta": 0.0, "ref_model": "m"}, "ref_model: has no effect with beta: 0"),
        ({"beta": 0.0, "sync_ref_model": True}, "sync_ref_model: has no effect with beta: 0"),
        ({"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha: has no effect without sync_ref_model"),
        ({"ref_model_sync_steps": 5}, "ref_model_sync_steps: has no effect without sync_ref_model"),
        ({"sync_ref_model": True, "use_peft": True}, "sync_ref_model: with use_peft"),
        ({"model": "a", "ref_model": "a"}, "ref_model: is the model that is trained"),
        ({"ref_model": "./nowhere"}, "ref_model: "),
        ({"steps_per_generation": 2, "generation_batch_size": 16}, "say the same in two ways"),
        ({"num_generations": 3}, "num_generations: .*groups of 3; nearest num_generations: 2 or 4"),
        ({"packing": True}, "packing: has no effect on rollouts"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        RLOOConfig(per_device_train_batch_size=8, **fields).check()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"beta": 0.0},
        {"reward_clip_range": [-1.0, 1.0]},
        {"epsilon": 0.3, "epsilon_high": 0.4, "num_iterations": 2},
        {"epsilon": 0.3, "steps_per_generation": 2},
        {"sync_ref_model": True, "ref_model_sync_steps": 5, "ref_model_mixup_alpha": 1.0},
    ],
)
def test_accepted(fields):
    RLOOConfig(per_device_train_batch_size=8, gradient_accumulation_steps=1, **fields).check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-generations", "1"], "num-generations"),
        (["--epsilon", "0"], "epsilon"),
        (["--beta", "-1"], "beta"),
        (["--num-iterations", "0"], "num-iterations"),
        (["--ref-model-mixup-alpha", "2"], "ref-model-mixup-alpha"),
    ],
)
def test_values_out_of_range_are_refused(arguments, said):
    from ft_host.testing import resolve

    with pytest.raises(ConfigError, match=said):
        resolve(RLOOConfig, None, ["--model", "m", "--dataset", "d", "--reward", "a.py:f", *arguments])


def test_a_range_is_read_from_flags():
    from ft_host.testing import resolve

    given = ["--model", "m", "--dataset", "d", "--reward", "think_format_reward", "--reward-clip-range", "-1", "2.5"]
    assert resolve(RLOOConfig, None, given).config.reward_clip_range == [-1.0, 2.5]


def test_the_plan():
    config = RLOOConfig(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        steps_per_generation=6,
        num_iterations=3,
    )
    plan = config.rollout_plan(2)
    assert plan == RolloutPlan(prompts=12, generations=4, steps=3, passes=3, whole_groups=False)
    assert (plan.rows_per_step, plan.updates) == (16, 9)


def test_clip_range():
    assert RLOOConfig().clip_range == (0.8, 1.2)
    assert RLOOConfig(epsilon=0.1, epsilon_high=0.28).clip_range == (0.9, 1.28)


def test_the_models_that_are_asked_for():
    assert ft_models(RLOOConfig(beta=0.0)) is None
    held = {"reference": ModelSpec(source="other", field="ref_model", sync_alpha=0.6)}
    assert ft_models(RLOOConfig(ref_model="other")) == held
    synced = ft_models(RLOOConfig(sync_ref_model=True))
    assert synced == {"reference": ModelSpec(field="ref_model", sync_steps=512, sync_alpha=0.6)}
