"""Kernels of liger-kernel in the place of a model's own."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from ft_host.errors import ConfigError
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.models.policy import Policy


def apply_liger(policy: Policy, device: torch.device) -> None:
    """Patch the model of a policy. Raises ConfigError where that can't run."""
    if importlib.util.find_spec("liger_kernel") is None or device.type not in devices.TRITON:
        raise ConfigError(
            f"use_liger_kernel: needs a GPU that Triton compiles for ({', '.join(devices.TRITON)}; this run is on "
            f"{device.type}) and the package liger-kernel (pip install liger-kernel)"
        )
    from transformers.integrations.liger import apply_liger_kernel

    # its head works on full rows of tokens; ours already avoids holding all logits
    apply_liger_kernel(policy.model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
