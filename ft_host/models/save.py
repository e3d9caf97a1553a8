"""What `from_pretrained` loads: a model's folder, an adapter's, or an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ft_host.models.attention import original_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy


def save_model(policy: Policy, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the model, or with LoRA the adapter, as safetensors. `state`: the policy's whole weights by name, where
    its own are sharded."""
    if state is not None:
        tied = {f"model.{name}" for name in policy.causal_lm.all_tied_weights_keys}  # one tensor under two names
        state = {name.removeprefix("model."): tensor for name, tensor in state.items() if name not in tied}
    config = policy.causal_lm.config
    ours, config._attn_implementation = config._attn_implementation, original_of(config)
    try:
        policy.model.save_pretrained(folder, state_dict=state)
    finally:
        config._attn_implementation = ours


def merge_adapter(config: RunConfig, adapter: Path, folder: Path) -> None:
    """Write the base weights with the adapter merged in. Loads the base again, on the CPU and unquantised, so that
    the run's own model stays as it is."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    from ft_host.models.load import DTYPES

    base = AutoModelForCausalLM.from_pretrained(
        PeftConfig.from_pretrained(adapter).base_model_name_or_path,
        dtype=DTYPES[config.dtype],
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
    )
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
