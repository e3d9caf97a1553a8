"""Masks of prompts and of decoded tokens, made without a look at the device.

transformers asks a mask whether it hides anything, and waits for the answer: a mask that hides nothing is left out, for
faster kernels. Whoever lays out the rows knows that before. So a batch without padding gets no mask, and within
`padded` the functions that transformers calls for "sdpa" and "eager" no longer ask. For a single token they also take
fewer operators. They are registered once, under transformers' own names, and outside of `padded` do what they did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionMaskInterface

NAMES = ("sdpa", "eager")

_padded: ContextVar[bool] = ContextVar("ft_host_padded", default=False)


@contextlib.contextmanager
def padded() -> Iterator[None]:
    """Within this block a model is given 2-D masks that hide something, and no other."""
    _register()
    token = _padded.set(True)
    try:
        yield
    finally:
        _padded.reset(token)


class WithoutLook:
    """transformers' function for the masks of one attention implementation, which doesn't look at them."""

    def __init__(self, name: str, original: Callable[..., Any]):
        self.name, self.original = name, original

    def __call__(self, *, q_length: int, use_vmap: bool = False, **arguments: Any) -> torch.Tensor | None:
        hidden = arguments.get("attention_mask")
        if not _padded.get() or hidden is None:
            return self.original(q_length=q_length, use_vmap=use_vmap, **arguments)
        if q_length > 1 or use_vmap:  # use_vmap: the model adds a mask of its own
            arguments["allow_is_causal_skip"] = False
            return self.original(q_length=q_length, use_vmap=use_vmap, **arguments)
        mask, window = hidden, arguments.get("local_size")
        if window is not None and window < mask.shape[1]:
            mask = mask & (torch.arange(mask.shape[1], device=mask.device) >= mask.shape[1] - window)
        mask = mask[:, None, None]
        if self.name == "eager":
            dtype = arguments["dtype"]
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask


def _register() -> None:
    known = AttentionMaskInterface._global_mapping
    for name in NAMES:
        if not isinstance(known[name], WithoutLook):
            AttentionMaskInterface.register(name, WithoutLook(name, known[name]))
