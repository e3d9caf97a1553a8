"""What is refused before anything is loaded, and what follows from the fields."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from ft_grpo.config import CLIPPED, LOSS_TYPES, OWN_FIELDS, GRPOConfig

from ft_host.api import ConfigError


def config_of(**fields: Any) -> GRPOConfig:
    given = {"model": "a model", "dataset": "rows", "reward": ["accuracy_reward"], "per_device_train_batch_size": 8}
    return GRPOConfig(**(given | fields))


def test_the_defaults_are_accepted_with_every_loss():
    for name in LOSS_TYPES:
        config_of(loss_type=name).check()


CHANGED = {
    "epsilon": 0.3,
    "epsilon_high": 1.5,
    "delta": 4.0,
    "sapo_temperature_neg": 1.2,
    "sapo_temperature_pos": 1.2,
    "vespo_k_pos": 1.0,
    "vespo_lambda_pos": 1.0,
    "vespo_k_neg": 1.0,
    "vespo_lambda_neg": 1.0,
}


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_fields_of_another_loss_are_refused(loss_type):
    for name, (losses, _) in OWN_FIELDS.items():
        config = config_of(loss_type=loss_type, **{name: CHANGED[name]})
        if loss_type in losses:
            config.check()
            continue
        with pytest.raises(ConfigError, match=f"^{name}: has no effect on {loss_type}, only on {losses[0]}"):
            config.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high: 0.28 with cispo, where it is the largest ratio"),
        ({"delta": 1.2}, "delta: 1.2 clips before epsilon_high does, at 1.2"),
        ({"delta": 1.3, "epsilon_high": 0.4}, "delta: 1.3 clips before"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "importance_sampling_level: sequence has no"),
        ({"entropy_target": 1.0}, "entropy_target: has no effect without use_adaptive_entropy"),
        ({"entropy_coef_max": 0.5, "entropy_coef": 0.1}, "entropy_coef_max: has no effect without use_adaptive"),
        ({"use_adaptive_entropy": True, "entropy_coef": 2.0}, "entropy_coef: starts at 2, expected .* 0 .* 1$"),
        ({"ref_model": "other"}, "ref_model: has no effect with beta: 0"),
        ({"sync_ref_model": True}, "sync_ref_model: has no effect with beta: 0"),
        ({"use_bias_correction_kl": False}, "use_bias_correction_kl: has no effect with beta: 0"),
        ({"beta": 0.1, "ref_model_sync_steps": 3}, "ref_model_sync_steps: has no effect without sync_ref_model"),
        ({"beta": 0.1, "ref_model_mixup_alpha": 1.0}, "ref_model_mixup_alpha: has no effect without sync_ref_model"),
        ({"beta": 0.1, "sync_ref_model": True, "use_peft": True}, "sync_ref_model: with use_peft"),
        ({"beta": 0.1, "ref_model": "a model"}, "ref_model: is the model that is trained"),
        ({"beta": 0.1, "ref_model": "./nowhere"}, "ref_model: "),
        ({"importance_sampling_clip_max": 2.0}, "importance_sampling_clip_max: has no effect without importance_samp"),
        (
            {"importance_sampling_correction": "token_mask", "importance_sampling_clip_max": None},
            "masks nothing without",
        ),
        ({"importance_sampling_correction": "token_mask", "importance_sampling_clip_min": 3.0}, "must be below"),
        ({"loss_type": "vespo", "importance_sampling_correction": "sequence_mask"}, "with vespo, .* token_truncate or"),
        ({"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"}, "scale_rewards: none has no"),
        ({"num_generations": 3}, "num_generations: 8 completions a rollout .* nearest num_generations: 2 or 4"),
        ({"generation_batch_size": 12}, "generation_batch_size: .* nearest: 8 or 16"),
        ({"generation_batch_size": 8, "steps_per_generation": 1}, "say the same in two ways"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**fields).check()


def test_the_largest_ratio_that_pays():
    for name in CLIPPED:
        assert config_of(loss_type=name).clip_high == 1.2
        assert config_of(loss_type=name, epsilon_high=0.28).clip_high == 1.28
    assert config_of(loss_type="cispo").clip_high == 5.0
    assert config_of(loss_type="cispo", epsilon_high=2.0).clip_high == 2.0


def test_the_correction_goes_by_the_backend_and_by_when_completions_are_sampled():
    assert config_of().correction == "none"
    assert config_of(rollouts="overlap").correction == "sequence_mask"
    assert config_of(rollouts="async", max_staleness=0).correction == "none"
    assert config_of(backend="vllm").correction == "sequence_mask"
    assert config_of(backend="vllm", loss_type="vespo").correction == "token_truncate"
    config_of(backend="vllm", loss_type="vespo").check()
    assert config_of(backend="vllm", importance_sampling_correction="none").correction == "none"
    config_of(backend="vllm", importance_sampling_clip_max=2.0).check()


def test_the_plan():
    plan = config_of(gradient_accumulation_steps=2, steps_per_generation=4, num_iterations=3).rollout_plan(2)
    assert (plan.prompts, plan.generations, plan.steps, plan.passes, plan.updates) == (8, 8, 2, 3, 6)


def test_names_of_trl_are_understood():
    from ft_host.testing import fields_of

    aliases = {alias: field.name for field in fields_of(GRPOConfig).values() for alias in field.aliases}
    assert aliases["vllm_importance_sampling_mode"] == "importance_sampling_correction"
    assert aliases["vllm_importance_sampling_clip_max"] == "importance_sampling_clip_max"


def test_the_config_imports_no_torch():
    code = "import ft_grpo.config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
