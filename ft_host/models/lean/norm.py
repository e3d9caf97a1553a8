"""A root-mean-square norm that keeps its input and one number a token: Zhang and Sennrich 2019, arXiv:1910.07467."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from ft_host.models.lean import fused

aten = torch.ops.aten


@dataclass(frozen=True)
class NormForm:
    """What tells one root-mean-square norm from another: y = x / sqrt(mean(x²) + eps) * (weight + offset).

    `offset`: 1 where weights are held as their difference from one (Gemma). `narrow_first`: x is back in its own type
    before it meets the weight (Llama), so that a float32 weight makes a bfloat16 input float32.
    """

    eps: float
    offset: float
    narrow_first: bool


def ratio_of(states: torch.Tensor, eps: float) -> torch.Tensor:
    """(..., H) to (..., 1): what a norm multiplies a token by, in float32."""
    return states.float().pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()  # summed as models do, to the same bits


def normed(
    states: torch.Tensor, weight: torch.Tensor | None, ratio: torch.Tensor, form: NormForm
) -> torch.Tensor:  # (..., H)
    out = states.float() * ratio
    if weight is None:
        return out.to(states.dtype)
    if form.narrow_first:
        out = out.to(states.dtype)
    factor = weight.float() + form.offset if form.offset else weight
    out = out.mul_(factor) if torch.promote_types(out.dtype, factor.dtype) == out.dtype else out * factor
    return out if form.narrow_first else out.to(states.dtype)


# ---------------------------------------------------------------- in one kernel


@functools.cache
def has_kernel(device: str) -> bool:
    """Whether torch has this norm and its gradient as one kernel each for a type of device. It has for CUDA."""
    names = ("aten::_fused_rms_norm", "aten::_fused_rms_norm_backward")
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(name, device.upper()) for name in names)


def fuses(states: torch.Tensor, weight: torch.Tensor | None, form: NormForm) -> bool:
    """Whether one kernel computes it: it takes no second type, which a float32 input doesn't need."""
    if weight is None or not has_kernel(states.device.type):
        return False
    return states.dtype == torch.float32 or (states.dtype == weight.dtype and not form.offset)


def factor_of(weight: torch.Tensor, states: torch.Tensor, form: NormForm) -> torch.Tensor:
    """(H,): what a kernel multiplies by."""
    return weight.float() + form.offset if form.offset else weight.to(states.dtype)


def forward_of(
    states: torch.Tensor, weight: torch.Tensor | None, form: NormForm, ratio: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the ratio of each token, which may be known."""
    if weight is not None and fuses(states, weight, form):
        return aten._fused_rms_norm(states, [states.shape[-1]], factor_of(weight, states, form), form.eps)
    if weight is not None and fused.takes_norm(states, weight, form):
        return fused.norm(states, weight, form)
    ratio = ratio_of(states, form.eps) if ratio is None else ratio
    return normed(states, weight, ratio, form), ratio


# ---------------------------------------------------------------- with its gradient


class Norm(torch.autograd.Function):
    """`Norm.apply(states, weight, form)`: (..., H) and (H,) or None to (..., H). Maths in float32."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor | None, form: NormForm) -> torch.Tensor:
        out, ratio = forward_of(states, weight, form)
        ctx.save_for_backward(states, weight, ratio)
        ctx.form, ctx.made = form, None
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, ratio = ctx.saved_tensors
        ctx.made = None
        if weight is not None and fuses(states, weight, ctx.form):
            given = grad.contiguous(), states, [states.shape[-1]], ratio, factor_of(weight, states, ctx.form)
            of_states, of_weight = aten._fused_rms_norm_backward(*given, list(ctx.needs_input_grad[:2]))
            return of_states, None if of_weight is None else of_weight.to(weight.dtype), None
        if weight is not None and fused.takes_norm(states, weight, ctx.form):
            given = grad, states, weight, ratio, ctx.form, ctx.needs_input_grad
            return *fused.norm_backward(*given), None
        of_states = of_weight = None
        with torch.autocast(states.device.type, enabled=False):
            wide, grad = states.float(), grad.float()
            # dw = sum over tokens of r g x, and dx = r g w - x r³ mean(g w x). Both sums are products of g x with a
            # vector, and its memory then holds dx: half the passes over memory that autograd makes.
            both = torch.mul(grad, wide, out=torch.empty(wide.shape, dtype=wide.dtype, device=wide.device))
            rows = both.view(-1, both.shape[-1])  # (T, H)
            if ctx.needs_input_grad[1]:
                of_weight = torch.mv(rows.t(), ratio.reshape(-1)).view(weight.shape).to(weight.dtype)
            if ctx.needs_input_grad[0]:
                factor = None if weight is None else weight.float() + ctx.form.offset
                sums = rows.sum(-1) if factor is None else torch.mv(rows, factor)
                slope = sums.view(ratio.shape).mul_(ratio.pow(3)).div_(-states.shape[-1])
                unit = both.copy_(grad) if factor is None else torch.mul(grad, factor, out=both)
                of_states = unit.mul_(ratio).addcmul_(wide, slope).to(states.dtype)
        return of_states, of_weight, None


def remade(node: Any) -> torch.Tensor:
    """The output of the `Norm` of a graph's node, made again. Kept until its backward pass: several layers want it."""
    if node.made is None:
        states, weight, ratio = node.saved_tensors
        node.made, _ = forward_of(states, weight, node.form, ratio)
    return node.made


def norm(states: torch.Tensor, weight: torch.Tensor | None, form: NormForm) -> torch.Tensor:
    """`Norm`, or its maths alone where no gradient is wanted."""
    if torch.is_grad_enabled():
        return Norm.apply(states, weight, form)
    return forward_of(states, weight, form)[0]
