"""Gradient checkpointing: whether activations are kept, or made a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.distributed.processes import free_memory, precision
from ft_host.errors import ConfigError
from ft_host.models.policy import Policy
from ft_host.models.shards import held_bytes
from ft_host.util.memory import ModelSizes, activation_bytes, model_sizes_of

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


def most_activations(policy: Policy, config: RunConfig) -> int:
    """Return the bytes that a micro-batch keeps for its backward pass, if all its rows have the maximum length."""
    width = 4 if precision(config, policy.device) == "no" else 2
    rows = config.per_device_train_batch_size * (config.max_length or 2048)
    return activation_bytes(sizes_of(policy.config), config.max_tokens_per_micro_batch or rows, width)


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
        left = free_memory(policy.device) - 3 * trained  # gradients and Adam's two moments
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
