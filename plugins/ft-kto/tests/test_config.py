"""What can be known wrong of a config is refused by name, and what the fields come to."""

from __future__ import annotations

import pytest
from ft_kto.config import KTOConfig
from ft_kto.method import ft_models

from ft_host.api import ConfigError, ModelSpec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"per_device_train_batch_size": 1}, "a step of one row has no other completion"),
        (
            {"kl_scope": "micro_batch", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
            "per_device_train_batch_size: with kl_scope: micro_batch",
        ),
        ({"kl_scope": "micro_batch", "packing": True}, "packing and kl_scope: micro_batch"),
        (
            {"kl_scope": "micro_batch", "train_sampling_strategy": "group_by_length"},
            "group_by_length and kl_scope: micro_batch",
        ),
        (
            {"kl_scope": "micro_batch", "max_tokens_per_micro_batch": 64},
            "max_tokens_per_micro_batch and kl_scope: micro_batch",
        ),
        ({"kl_scope": "micro_batch", "loss_type": "apo_zero_unpaired"}, "kl_scope: micro_batch has no effect"),
        ({"sync_ref_model": True, "use_peft": True}, "sync_ref_model: with use_peft"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "sync_ref_model and precompute_ref_log_probs"),
        ({"ref_model_mixup_alpha": 0.5}, "ref_model_mixup_alpha: has no effect without sync_ref_model"),
        ({"ref_model_sync_steps": 5}, "ref_model_sync_steps: has no effect without sync_ref_model"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped cuts rows anywhere"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        KTOConfig(**fields).check()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 1, "num_processes": 2},
        {"per_device_train_batch_size": 1, "packing": True},
        {"per_device_train_batch_size": 1, "loss_type": "apo_zero_unpaired"},
        {"kl_scope": "micro_batch", "per_device_train_batch_size": 2},
        {"sync_ref_model": True, "ref_model_sync_steps": 5},
    ],
)
def test_accepted(fields):
    KTOConfig(**fields).check()


@pytest.mark.parametrize(
    ("fields", "ahead"),
    [
        ({}, None),
        ({"precompute_ref_log_probs": True}, "steps"),
        ({"loss_type": "apo_zero_unpaired"}, "rows"),
        ({"loss_type": "apo_zero_unpaired", "use_peft": True}, None),
        ({"loss_type": "apo_zero_unpaired", "dataset_streaming": True}, None),
        ({"loss_type": "apo_zero_unpaired", "sync_ref_model": True}, None),
        ({"loss_type": "apo_zero_unpaired", "precompute_ref_log_probs": False}, None),
        ({"precompute_ref_log_probs": True, "use_peft": True}, "steps"),
    ],
)
def test_what_is_made_ahead(fields, ahead):
    assert ft_models(KTOConfig(**fields))["reference"].precompute == ahead


def test_the_reference_that_is_asked_for():
    assert ft_models(KTOConfig()) == {"reference": ModelSpec(field="ref_model", sync_alpha=0.6)}
    config = KTOConfig(ref_model="other", sync_ref_model=True, ref_model_sync_steps=7, ref_model_mixup_alpha=0.9)
    expected = ModelSpec(source="other", field="ref_model", sync_steps=7, sync_alpha=0.9)
    assert ft_models(config) == {"reference": expected}
