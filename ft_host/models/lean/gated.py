"""The product of a gated MLP, activation(gate) * up, that keeps gate and up alone: Shazeer 2020, arXiv:2002.05202."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ft_host.models.lean import fused

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """`value(x)`, a new tensor, and `slope(grad, x)`: the gradient by x, from that by the value, in its place."""

    value: Callable[[torch.Tensor], torch.Tensor]
    slope: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _of_silu(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.silu_backward.grad_input(grad, x, grad_input=grad)


def _of_gelu(grad: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=grad)


def _of_relu(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)


def _of_sigmoid(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return aten.sigmoid_backward.grad_input(grad, torch.sigmoid(x), grad_input=grad)


ACTIVATIONS = {
    "silu": Activation(F.silu, _of_silu),
    "gelu": Activation(F.gelu, _of_gelu),
    "gelu_tanh": Activation(partial(F.gelu, approximate="tanh"), partial(_of_gelu, approximate="tanh")),
    "relu": Activation(F.relu, _of_relu),
    "sigmoid": Activation(torch.sigmoid, _of_sigmoid),
}


def product(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:  # (..., I)
    if fused.takes_product(gate, up, name):
        return fused.gated(gate, up, name)
    value = ACTIVATIONS[name].value(gate)
    return value.mul_(up) if torch.promote_types(value.dtype, up.dtype) == value.dtype else value * up


class Gated(torch.autograd.Function):
    """`Gated.apply(gate, up, name)`: (..., I) twice to (..., I). `name` is one of `ACTIVATIONS`."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.name, ctx.made = name, None
        return product(gate, up, name)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        ctx.made = None
        if all(ctx.needs_input_grad[:2]) and fused.takes_product(gate, up, ctx.name):
            return *fused.gated_backward(grad, gate, up, ctx.name), None
        of_gate = of_up = None
        if ctx.needs_input_grad[1]:
            of_up = product(gate, grad, ctx.name).to(up.dtype)
        if ctx.needs_input_grad[0]:
            of_gate = ACTIVATIONS[ctx.name].slope((grad * up).to(gate.dtype), gate)
        return of_gate, of_up, None


def remade(node: Any) -> torch.Tensor:
    """The output of the `Gated` of a graph's node, made again. Kept until its backward pass."""
    if node.made is None:
        gate, up = node.saved_tensors
        node.made = product(gate, up, node.name)
    return node.made


def gated(gate: torch.Tensor, up: torch.Tensor, name: str) -> torch.Tensor:
    """`Gated`, or its maths alone where no gradient is wanted."""
    return Gated.apply(gate, up, name) if torch.is_grad_enabled() else product(gate, up, name)
