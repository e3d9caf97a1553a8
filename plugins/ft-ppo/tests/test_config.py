"""What can be known wrong of a config is refused by name, and what the fields come to."""

from __future__ import annotations

import pytest
from ft_ppo.config import PPOConfig
from ft_ppo.method import ft_models

from ft_host.api import ConfigError, ModelSpec, RolloutPlan

# Fields and defaults that the method has elsewhere (TRL's PPOConfig).
USUAL = {
    "learning_rate": 3e-6,
    "num_ppo_epochs": 4,
    "num_mini_batches": 1,
    "max_completion_length": 53,
    "temperature": 0.7,
    "stop_token": None,
    "stop_token_id": None,
    "missing_eos_penalty": None,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "whiten_rewards": False,
    "gamma": 1.0,
    "lam": 0.95,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "disable_dropout": True,
    "importance_sampling_correction": "auto",
    "importance_sampling_clip_max": 3.0,
    "importance_sampling_clip_min": None,
}


def test_defaults():
    config = PPOConfig()
    assert {name: getattr(config, name) for name in USUAL} == USUAL


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"value_head": True, "value_model": "m"}, "value_head and value_model"),
        ({"kl_coef": 0.0, "ref_model": "m"}, "ref_model: has no effect with kl_coef: 0"),
        ({"kl_coef": 0.0, "kl_estimator": "k3"}, "kl_estimator: has no effect with kl_coef: 0"),
        ({"stop_token": ".", "stop_token_id": 4}, "stop_token and stop_token_id"),
        ({"stop_token": "eos"}, "completions always end at the EOS token"),
        ({"stop_token_id": 4, "tools": ["a.py:f"]}, "stop_token_id: a conversation with tools"),
        ({"stop_token": ".", "environment": "a.py:E"}, "stop_token: a conversation with tools"),
        ({"importance_sampling_clip_max": 2.0}, "importance_sampling_clip_max: has no effect without"),
        (
            {"importance_sampling_correction": "token_mask", "importance_sampling_clip_max": None},
            "importance_sampling_correction: token_mask masks nothing",
        ),
        ({"importance_sampling_correction": "token_mask", "importance_sampling_clip_min": 3.0}, "must be below"),
        ({"packing": True}, "packing: has no effect on rollouts"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        PPOConfig(**fields).check()


@pytest.mark.parametrize("fields", [{}, {"value_head": True}, {"kl_coef": 0.0}, {"stop_token": "."}])
def test_accepted(fields):
    PPOConfig(**fields).check()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cliprange", "0"], "cliprange"),
        (["--lam", "1.5"], "lam"),
        (["--kl-estimator", "k2"], "k2"),
        (["--missing-eos-penalty", "-1"], "missing-eos-penalty"),
    ],
)
def test_values_out_of_range_are_refused(arguments, said):
    from ft_host.testing import resolve

    with pytest.raises(ConfigError, match=said):
        resolve(PPOConfig, None, ["--model", "m", "--dataset", "d", "--reward", "a.py:f", *arguments])


def test_the_correction_goes_by_the_backend_and_by_when_completions_are_sampled():
    def correction(**fields: object) -> str:
        return PPOConfig(reward=["a.py:f"], num_ppo_epochs=1, **fields).correction

    assert correction() == "none" and correction(backend="vllm") == "sequence_mask"
    assert correction(rollouts="overlap") == correction(rollouts="async") == "sequence_mask"
    assert correction(rollouts="async", max_staleness=0) == "none"
    assert correction(rollouts="async", importance_sampling_correction="none") == "none"


def test_the_plan():
    config = PPOConfig(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=3, num_ppo_epochs=5
    )
    plan = config.rollout_plan(2)
    assert plan == RolloutPlan(prompts=48, generations=1, steps=3, passes=5, shuffled=True)
    assert (plan.rows_per_step, plan.updates) == (16, 15)


def test_the_models_that_are_asked_for():
    value = ModelSpec(head="value", trained=True, field="value_model")
    assert ft_models(PPOConfig()) == {"value": value, "reference": ModelSpec(field="ref_model")}
    found = ft_models(PPOConfig(value_model="scorer", ref_model="other"))
    assert (found["value"].source, found["reference"].source) == ("scorer", "other")
    shared = ft_models(PPOConfig(value_head=True, kl_coef=0.0))
    assert shared == {"value": ModelSpec(head="value", trained=True, field="value_model", shares_policy=True)}
