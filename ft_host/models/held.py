"""The types that weights are held in, and the type that products of matrices are computed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ft_host.distributed.processes import precision

if TYPE_CHECKING:
    from ft_host.config import RunConfig

DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


def trained_dtype(config: RunConfig) -> torch.dtype | str:
    """Return the type that trained weights are held in, "auto" for that of their files: float32 unless `dtype` is set,
    since a small update would be lost in a shorter one."""
    return DTYPES[config.dtype or "float32"]


def frozen_dtype(config: RunConfig, device: torch.device) -> torch.dtype | str:
    """Return the type that frozen weights are held in, "auto" for that of their files.

    Unless `dtype` is set it is bfloat16 where the maths is: a product would round a float32 matrix to it each time.
    float16 is no such type: it can't hold what some models keep between their layers.
    """
    if config.dtype is None and precision(config, device) == "bf16":
        return torch.bfloat16
    return trained_dtype(config)


def product_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the type that products of matrices are computed in, where autocast decides."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision(config, device), torch.float32)


def maths(config: RunConfig, device: torch.device) -> torch.autocast:
    """Return the context that a run's forward passes are in: autocast to the type of its products, or nothing."""
    dtype = product_dtype(config, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def hold_trained_in_float32(model: nn.Module) -> None:
    """Make float32 of trained parameters that were copied from a base in a shorter type (modules that are trained in
    full beside an adapter). What modules share stays shared."""
    short = {
        parameter: nn.Parameter(parameter.detach().float())  # a new one: one that is sharded can't change its type
        for parameter in model.parameters()
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16)
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in short:
                setattr(module, name, short[parameter])


def keeps_wide(config: RunConfig, device: torch.device) -> bool:
    """Return whether frozen models of a run keep the states between their layers in float32, as its policy does that is
    trained whole and held in float32."""
    return config.dtype is None and not config.use_peft and frozen_dtype(config, device) == torch.bfloat16


def keep_wide(model: nn.Module) -> None:
    """Under autocast, keep the states between the layers in float32 although the weights are in a shorter type.

    A frozen model then computes what the same one in float32 would, if its files hold no more than the shorter type:
    matrices are rounded for a product anyway, and what isn't rounded there is added to states in float32. A reference
    so agrees with a policy in float32 to the bit before the first step.
    """
    model.get_input_embeddings().register_forward_hook(_wide)


def _wide(module: nn.Module, args: tuple[torch.Tensor, ...], states: torch.Tensor) -> torch.Tensor:
    return states.float() if torch.is_autocast_enabled(states.device.type) else states
