"""Gradient checkpointing: whether activations are kept, or made a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from ft_host.distributed.processes import free_memory, precision
from ft_host.errors import ConfigError
from ft_host.models.policy import Policy
from ft_host.models.shards import held_bytes
from ft_host.util.model_sizes import ModelSizes, model_sizes_of
from ft_host.util.step_memory import Kept, activation_bytes, states_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from ft_host.config import RunConfig


def sizes_of(config: PretrainedConfig) -> ModelSizes:
    """Return the sizes of a language model. Some configs name two of them differently, which only attribute access
    maps.
    """
    return model_sizes_of(
        config.to_dict() | {"hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers}
    )


def kept_by(policy: Policy, config: RunConfig) -> Kept:
    """Return how a policy's layers compute, as far as memory goes by it. Compiled layers are a model's own: what they
    keep the compiler chooses."""
    mixed, embeddings = precision(config, policy.device) != "no", policy.causal_lm.get_input_embeddings().weight
    held = embeddings.element_size()
    lean, replaced = policy.lean, config.use_liger_kernel or config.torch_compile
    return Kept(
        width=2 if mixed else held,
        states=2 if mixed and isinstance(embeddings, DTensor) else held,  # FSDP2 has no wider ones
        norms=not replaced and lean.lean_norms == lean.norms,
        mlps=not replaced and (lean.lean_mlps, lean.lean_experts) == (lean.mlps, lean.experts),
        adapter=config.use_peft,
        segments=policy.kernel == "sdpa",
    )


def copied_bytes(policy: Policy, config: RunConfig) -> int:
    """Return what autocast makes of matrices that are wider than its type, and what of a packed matrix is unpacked for
    its product. A policy that is sharded has no copies beside those that are gathered."""
    parameters = list(policy.model.parameters())
    if precision(config, policy.device) == "no" or any(isinstance(p, DTensor) for p in parameters):
        return 0
    embeddings = policy.causal_lm.get_input_embeddings()
    used = policy.head is None and policy.causal_lm.get_output_embeddings().weight is embeddings.weight
    looked_up = set() if used else {id(p) for p in embeddings.parameters()}
    copied = [p for p in parameters if p.element_size() == 4 and p.dim() > 1 and id(p) not in looked_up]
    packed = [p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in parameters if p.element_size() == 1]
    return sum(p.numel() * 2 for p in copied) + 2 * max(packed, default=0)


def most_activations(policy: Policy, config: RunConfig) -> int:
    """Return the bytes that a micro-batch keeps for its backward pass, if all its rows have the maximum length."""
    rows = config.per_device_train_batch_size * (config.max_length or 2048)
    tokens = config.max_tokens_per_micro_batch or rows
    return activation_bytes(sizes_of(policy.config), tokens, kept_by(policy, config))


def recompute(policy: Policy, config: RunConfig) -> None:
    """Turn it on where it is wanted or, if nothing is said, where activations would not fit. Raises ConfigError for a
    model that can't do it."""
    wanted = config.gradient_checkpointing
    if not policy.causal_lm.supports_gradient_checkpointing:
        if wanted:
            raise ConfigError(f"gradient_checkpointing: {type(policy.causal_lm).__name__} doesn't support it")
        return
    if wanted is None:
        trained = sum(held_bytes(p) for p in policy.parameters() if p.requires_grad)
        taken = (1 + states_of(config.optim)) * trained + copied_bytes(policy, config)  # gradients and moments
        left = free_memory(policy.device) - taken
        need = most_activations(policy, config)
        # Blocks are full. Rows are rarely all of maximum length, so the estimate is rarely reached.
        wanted = need > (0.8 if config.packing else 1.2) * left
        if wanted:
            policy.notes.append(
                f"gradient checkpointing is on: activations would take about {need / 2**30:.1f} GiB of "
                f"{max(left, 0) / 2**30:.1f} GiB"
            )
    policy.recomputes = bool(wanted)
    if wanted:
        policy.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
