"""Writes what `from_pretrained` loads: a model, an adapter, or an adapter merged into its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ft_host.models.attention import original_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy


def save_model(policy: Policy, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the model, or with LoRA the adapter, as safetensors.

    `state`: the policy's whole weights by name, where its own are sharded.
    """
    from peft import PeftModel

    if state is not None:
        tied = {f"model.{name}" for name in policy.causal_lm.all_tied_weights_keys}  # one tensor under two names
        own = {name: tensor for name, tensor in state.items() if name.startswith("model.") and name not in tied}
        state = {name.removeprefix("model."): tensor for name, tensor in own.items()}
    config = policy.causal_lm.config
    ours, config._attn_implementation = config._attn_implementation, original_of(config)
    try:
        if isinstance(policy.model, PeftModel):
            # an adapter kept as a reference is on disk already
            policy.model.save_pretrained(folder, state_dict=state, selected_adapters=["default"])
        else:
            policy.model.save_pretrained(folder, state_dict=state)
    finally:
        config._attn_implementation = ours


def merge_adapter(config: RunConfig, adapter: Path, folder: Path) -> None:
    """Write the base weights with the adapter merged in.

    Loads the base again, on the CPU and unquantised, so that the run's model doesn't change. The folder of a reward
    model's adapter must contain its tokenizer.
    """
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from ft_host.models.load import score_pad
    from ft_host.models.weights import DTYPES

    settings = PeftConfig.from_pretrained(adapter)
    scores = settings.task_type == "SEQ_CLS"
    auto, labels = (AutoModelForSequenceClassification, {"num_labels": 1}) if scores else (AutoModelForCausalLM, {})
    base = auto.from_pretrained(
        settings.base_model_name_or_path,
        dtype=DTYPES[config.dtype],
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        **labels,
    )
    if scores:  # the head comes from the adapter; the tokenizer's padding tells where scores are read
        base.config.get_text_config().pad_token_id = score_pad(AutoTokenizer.from_pretrained(adapter))
    else:
        embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
        if head.weight is embeddings.weight and _changes(adapter, (embeddings, head), base):
            # tied weights are one tensor: merging the head's adapter into it would change the embeddings too
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
            base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)


def _changes(adapter: Path, modules: tuple[torch.nn.Module, ...], base: torch.nn.Module) -> bool:
    """Return whether an adapter's folder has weights for one of these modules of its base."""
    from safetensors import safe_open

    prefix = "base_model.model."
    names = [prefix + name + "." for name, module in base.named_modules() if module in modules]
    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        return any(key.startswith(tuple(names)) for key in tensors.keys())
