"""Every field that TRL's configs and command lines have, given another value than its default: it is taken, or it is
told what it is here or why it isn't. None falls through."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from typing import Any

import pytest

from ft_host import registry
from ft_host.config.fields import fields_of, names_of
from ft_host.config.renamed import already
from ft_host.migrate import Found, translate
from ft_host.migrate.forms import FORMS
from ft_host.migrate.translate import UNKNOWN

TRL = {
    "sft": "trl:SFTConfig",
    "dpo": "trl:DPOConfig",
    "kto": "trl.experimental.kto:KTOConfig",
    "reward": "trl:RewardConfig",
    "grpo": "trl:GRPOConfig",
    "rloo": "trl:RLOOConfig",
    "distill": "trl:DistillationConfig",
    "gkd": "trl.experimental.gkd:GKDConfig",
    "gold": "trl.experimental.gold:GOLDConfig",
    "sdft": "trl.experimental.sdft:SDFTConfig",
    "sdpo": "trl.experimental.sdpo:SDPOConfig",
    "orpo": "trl.experimental.orpo:ORPOConfig",
    "simpo": "trl.experimental.cpo:CPOConfig",
    "online-dpo": "trl.experimental.online_dpo:OnlineDPOConfig",
}
# PPO's and RLOO's in TRL 0.7 to 1.10, which the installed one has no more.
OLDER = {
    "ppo": (
        "num_ppo_epochs num_mini_batches kl_coef kl_estimator vf_coef cliprange cliprange_value gamma lam "
        "whiten_rewards missing_eos_penalty stop_token stop_token_id response_length total_episodes reward_model_path "
        "sft_model_path local_rollout_forward_batch_size num_sample_generations exp_name model_adapter_name "
        "ref_adapter_name ds3_gather_for_generation world_size batch_size mini_batch_size num_total_batches "
        "local_batch_size local_mini_batch_size dataset_num_proc push_to_hub log_with tracker_project_name model_name "
        "query_dataset reward_model adap_kl_ctrl init_kl_coef target horizon ppo_epochs early_stopping target_kl steps "
        "backward_batch_size max_grad_norm optimize_cuda_cache use_score_scaling use_score_norm score_clip "
        "whiten_rewards kl_penalty compare_steps ratio_threshold remove_unused_columns task_name tracker_kwargs "
        "accelerator_kwargs project_kwargs forward_batch_size optimize_device_cache "
        "gradient_checkpointing is_peft_model"
    ).split(),
    "rloo": (
        "rloo_k num_ppo_epochs num_mini_batches kl_coef cliprange total_episodes reward_model_path response_length "
        "normalize_reward reward_clip_range normalize_advantage token_level_kl stop_token missing_eos_penalty"
    ).split(),
    "dpo": (
        "max_prompt_length max_target_length max_completion_length label_pad_token_id padding_value is_encoder_decoder "
        "reference_free force_use_ref_model rpo_alpha generate_during_eval precompute_ref_eval_batch_size "
        "ref_model_init_kwargs model_adapter_name ref_adapter_name use_num_logits_to_keep use_logits_to_keep "
        "padding_free tools base_model_attribute_name dataset_num_proc"
    ).split(),
    "sft": (
        "max_seq_length dataset_batch_size num_of_sequences chars_per_token eval_packing dataset_kwargs use_liger "
        "formatting_func infinite evaluation_strategy per_gpu_train_batch_size"
    ).split(),
    "grpo": (
        "max_prompt_length vllm_device vllm_dtype vllm_enable_prefix_caching use_liger_loss vllm_guided_decoding_regex"
    ).split(),
}


def theirs(method: str) -> list[tuple[str, Any]]:
    """(name, a value that isn't the default) of every field that a command line of TRL's takes."""
    import trl
    from trl.scripts.grpo import GRPOScriptArguments

    module, _, name = TRL[method].partition(":")
    script = GRPOScriptArguments if method in ("grpo", "rloo") else trl.ScriptArguments
    ours = fields_of(registry.config_class(method))
    names, found = names_of(ours), {}
    for each in (getattr(importlib.import_module(module), name), trl.ModelConfig, script, trl.DatasetMixtureConfig):
        hints = typing.get_type_hints(each)
        for field in dataclasses.fields(each):
            value = another(field.default, hints[field.name])
            choices = ours[names[field.name]].choices if field.name in names else ()
            if value == "something" and choices:  # a value that is one here too
                value = next(choice for choice in choices if choice != field.default)
            found.setdefault(field.name, value)
    return list(found.items())


def another(default: Any, hint: Any) -> Any:
    if isinstance(default, bool) or (default in (None, dataclasses.MISSING) and "bool" in str(hint)):
        return default is not True
    if isinstance(default, (int, float)):
        return default + 3
    if "list" in str(hint):
        return ["something"]
    return 3 if "int" in str(hint) or "float" in str(hint) else "something"


def fate(method: str, name: str, value: Any) -> str:
    """What becomes of one field: taken, done anyway, or the reason why it is left."""
    found = Found()
    if "lora" in name or name in ("use_dora", "use_rslora", "load_in_4bit", "load_in_8bit", "use_bnb_nested_quant"):
        found.take("use_peft", True, "--use_peft")
    if name in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
        found.take("use_peft", True, "--use_peft")
        found.take("load_in_4bit", True, "--load_in_4bit")
    more = len(found.values)
    found.take(name, value, "--" + name)
    made = translate(found, registry.config_class(method))
    reasons = [why for left, _, why in made.left if left == name or f"refused here: {name}" in why]
    reasons += [why for _, _, why in made.left if why.startswith("refused here")]
    if reasons:
        return reasons[0]
    if name in made.same:
        assert already(name, value) or FORMS[name](value) == {}
        return "done anyway"
    assert len(made.taken) > more, (method, name, value)
    return "taken"


@pytest.mark.parametrize("method", TRL)
def test_every_field_of_trl_has_its_place(method):
    told = {name: fate(method, name, value) for name, value in theirs(method)}
    assert UNKNOWN not in told.values(), [name for name, said in told.items() if said == UNKNOWN]
    guessed = [(name, said) for name, said in told.items() if said.startswith("did you mean")]
    assert not guessed
    assert all(len(said) > 4 for said in told.values())
    assert sum(said == "taken" for said in told.values()) > 40


@pytest.mark.parametrize("method", OLDER)
def test_every_field_of_older_trls_has_its_place(method):
    told = {name: fate(method, name, 3) for name in OLDER[method]}
    assert not [(name, said) for name, said in told.items() if said == UNKNOWN or said.startswith("did you mean")]
