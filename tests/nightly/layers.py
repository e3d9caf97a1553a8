"""Norms and gated products of models, as their lean layers compile them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

BF16, F32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Layer:
    """`width`: of the norm, or of the product. `weight`: the type of a norm's weight. `name`: of a product's
    activation; None for a norm. `joined`: gate and up are halves of one tensor. `heads`: the norm is one of heads that
    were put before tokens."""

    width: int
    states: torch.dtype = BF16
    weight: torch.dtype = F32
    offset: float = 0.0
    name: str | None = None
    joined: bool = False
    heads: int | None = None


def _norms() -> dict[str, Layer]:
    """Of the two offsets each has a width of its own: the gradient by the weight would be one kernel for both."""
    words = {BF16: "bf16", F32: "float32"}
    return {
        f"norm of {words[states]}, weight in {words[weight]}{', plus one' if offset else ''}": Layer(
            width, states, weight, offset
        )
        for states in (BF16, F32)
        for weight in (BF16, F32)
        for width, offset in ((1024, 0.0), (2560, 1.0))
    }


NORMS = {
    **_norms(),
    "norm of heads, qwen 3": Layer(128),
    "norm of heads before tokens, gemma 3": Layer(256, offset=1.0, heads=8),
}
PRODUCTS = {
    "silu, bf16, qwen 3 0.6B": Layer(3072, name="silu"),
    "silu, bf16, qwen 3 8B": Layer(12_288, name="silu"),
    "silu, float32": Layer(3072, F32, name="silu"),
    "gelu_tanh, bf16, gemma 3 4B": Layer(10_240, name="gelu_tanh"),
    "gelu_tanh, float32": Layer(3072, F32, name="gelu_tanh"),
    "silu, bf16, halves of one tensor": Layer(8192, name="silu", joined=True),
}
LAYERS = NORMS | PRODUCTS
