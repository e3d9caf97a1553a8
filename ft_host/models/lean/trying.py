"""Beside each other: what a module computes and what a lean form computes, forward and backward, on random input."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from ft_host.util.devices import widened

Forward = Callable[..., torch.Tensor]

# Relative to the largest value: several roundings of the narrower type, in another order.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def outcome(forward: Forward, states: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output of a function of `states`, and the gradients of both and of weights, from a fixed gradient."""
    out = forward(states)
    slope = torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [states, *weights], slope)]


def apart_by(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference of two outcomes, relative to the largest value of its tensor."""
    most = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        wide = widened(other)
        apart = float((widened(one) - wide).abs().max() / wide.abs().max())
        if math.isnan(apart):  # which is no larger than anything
            return float("inf")
        most = max(most, apart)
    return most


def twin_of(module: nn.Module) -> nn.Module:
    """A module of the same class and attributes, whose parts may be exchanged; without hooks."""
    twin = copy.copy(module)
    vars(twin).update(nn.Module().__dict__ | {"training": module.training})
    return twin


@contextlib.contextmanager
def trial(device: torch.device, seed: int = 0) -> Iterator[torch.Generator]:
    devices = [] if device.type == "cpu" else [device]
    with torch.enable_grad(), torch.random.fork_rng(devices=devices, device_type=device.type):
        torch.manual_seed(seed)
        yield torch.Generator(device="cpu").manual_seed(seed)


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, generator=generator).to(device, dtype)


def takes_one(module: nn.Module) -> bool:
    """Whether a module can be called with one argument."""
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError:
        return False
    return True


def bound(function: Callable[..., torch.Tensor], *more: Any) -> Forward:
    return lambda states: function(states, *more)
