"""Frozen base weights in 4 or 8 bits, through bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from ft_host.errors import ConfigError
from ft_host.models.held import product_dtype

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def quantisation(config: RunConfig, device: torch.device) -> Any:
    """Return transformers' settings of a run's quantisation, None for none. Products are in the run's type. Raises
    ConfigError, which names the field, where bitsandbytes is missing, or doesn't run on this device, and with fsdp2."""
    if not (config.load_in_4bit or config.load_in_8bit):
        return None
    field = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{field}: bitsandbytes is not installed (pip install bitsandbytes)")
    dtype = product_dtype(config, device)
    if device.type == "cpu":
        _try_on_cpu(config, field, dtype)
    if config.distributed_strategy == "fsdp2":
        raise ConfigError(f"{field}: quantised weights can't be sharded by fsdp2; use distributed_strategy: ddp")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=config.load_in_8bit,
        load_in_4bit=config.load_in_4bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _try_on_cpu(config: RunConfig, field: str, dtype: torch.dtype) -> None:
    """Run one quantised layer: whether bitsandbytes has kernels for a CPU depends on its version and on the CPU."""
    from bitsandbytes import nn as layers

    try:
        if config.load_in_4bit:
            layer = layers.Linear4bit(64, 64, quant_type=config.bnb_4bit_quant_type, compute_dtype=dtype)
        else:
            layer = layers.Linear8bitLt(64, 64, has_fp16_weights=False)
        states = torch.ones(1, 64, requires_grad=True)
        layer.to("cpu")(states).sum().backward()
    except Exception as error:  # whatever kind its kernels raise
        raise ConfigError(
            f"{field}: bitsandbytes doesn't run on this CPU ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "use a GPU, a newer bitsandbytes, or dtype: bfloat16 without quantisation"
        ) from error
