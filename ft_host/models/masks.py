"""Masks of padded rows, of prompts and of decoded tokens, made without a look at the device.

transformers asks a mask whether it hides anything, and waits for the answer: a mask that hides nothing is left out, for
faster kernels. Whoever lays out the rows knows that before. So within `padded` the functions that transformers calls
for "sdpa" and "eager" no longer ask. For a single token they also take fewer operators. They are registered once, under
transformers' own names, and outside of `padded` do what they did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from ft_host.errors import FtHostError

NAMES = ("sdpa", "eager")


class NotSteady(FtHostError):
    """This model's step isn't a function of its tensors alone; the message says why."""


@dataclass(frozen=True, eq=False)
class Padding:
    """`at`: (1,) the column of the tokens that are decoded, where a step may not depend on numbers of the host. None:
    the last column of the mask. `hides`: whether the mask hides anything."""

    at: torch.Tensor | None = None
    hides: bool = True


_padding: ContextVar[Padding | None] = ContextVar("ft_host_padding", default=None)


@contextlib.contextmanager
def padded(at: torch.Tensor | None = None, *, hides: bool = True) -> Iterator[None]:
    """Within this block a model is given 2-D masks that all hide something, or, with `hides` false, nothing. `at`: see
    `Padding`."""
    _register()
    token = _padding.set(Padding(at, hides))
    try:
        yield
    finally:
        _padding.reset(token)


class WithoutLook:
    """transformers' function for the masks of one attention implementation, which doesn't look at them."""

    def __init__(self, name: str, original: Callable[..., Any]):
        self.name, self.original = name, original

    def __call__(self, *, q_length: int, use_vmap: bool = False, **arguments: Any) -> torch.Tensor | None:
        padding, mask = _padding.get(), arguments.get("attention_mask")
        if padding is None or mask is None:
            return self.original(q_length=q_length, use_vmap=use_vmap, **arguments)
        if not padding.hides:
            return self.original(q_length=q_length, use_vmap=use_vmap, **(arguments | {"attention_mask": None}))
        if q_length > 1 or use_vmap:  # use_vmap: the model adds a mask of its own
            if padding.at is not None:
                raise NotSteady("the model adds its own mask to the causal one")
            arguments["allow_is_causal_skip"] = False
            return self.original(q_length=q_length, use_vmap=use_vmap, **arguments)
        window, columns = arguments.get("local_size"), mask.shape[1]
        if window is not None and window < columns:
            last = columns - 1 if padding.at is None else padding.at
            mask = mask & (torch.arange(columns, device=mask.device) > last - window)
        mask = mask[:, None, None]
        if self.name == "eager":
            dtype = arguments["dtype"]
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return mask


def _register() -> None:
    from transformers import AttentionMaskInterface

    known = AttentionMaskInterface._global_mapping
    for name in NAMES:
        if not isinstance(known[name], WithoutLook):
            AttentionMaskInterface.register(name, WithoutLook(name, known[name]))
