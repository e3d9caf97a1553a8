"""Rotary positions in fewer passes over memory, forward and backward: Su et al. 2021, arXiv:2104.09864.

A model's attention calls a function of its module, `apply_rotary_pos_emb`. Most are alike, and write ten tensors for
queries and keys, and as many again for their gradient; `turned` writes one for each and goes over its halves in place.

The function is exchanged where the module has it, and does what it did for everybody but the attention modules that
were made lean.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from ft_host.models.lean.trying import TOLERANCE, apart_by, random, trial

NAME = "apply_rotary_pos_emb"
PARAMETERS = ["q", "k", "cos", "sin", "unsqueeze_dim"]

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_exchanged: dict[Rotation, Rotation] = {}  # models' own, by what takes their place
_lean: ContextVar[bool] = ContextVar("ft_host_lean_rotary", default=False)


def turned(
    states: torch.Tensor,  # (B, heads, T, D), halves x1 and x2
    cos: torch.Tensor,  # (B, 1, T, D), halves c1 and c2
    sin: torch.Tensor,  # (B, 1, T, D), halves s1 and s2
    backward: bool = False,
) -> torch.Tensor:
    """Return (x1 c1 - x2 s1, x2 c2 + x1 s2). `backward`: its transpose, (x1 c1 + x2 s2, x2 c2 - x1 s1), which takes the
    gradient of the output to that of the input. (B, heads, T, D), in the widest type of the three."""
    half = states.shape[-1] // 2
    out, one, two = states * cos, states[..., :half], states[..., half:]
    if backward:
        out[..., :half].addcmul_(two, sin[..., half:])
        out[..., half:].addcmul_(one, sin[..., :half], value=-1)
    else:
        # Rounded where models round, so that it gives their very numbers: minus a product is the product with a
        # negative, to the bit. (`-=` would write each half twice.)
        out[..., :half].sub_(two * sin[..., :half])
        out[..., half:].add_(one * sin[..., half:])
    return out


class Turned(torch.autograd.Function):
    """`Turned.apply(states, cos, sin)`: what `turned` gives. Keeps nothing of the states."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        return turned(states, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return turned(grad, *ctx.saved_tensors, backward=True).to(ctx.dtype), None, None


def turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`Turned`, or its maths alone where no gradient is wanted."""
    if torch.is_grad_enabled() and states.requires_grad:
        return Turned.apply(states, cos, sin)
    return turned(states, cos, sin)


# ---------------------------------------------------------------- in place of a model's own


def exchanged(own: Rotation) -> Rotation:
    """A function that is ours within lean attention modules, and the model's own everywhere else."""

    @functools.wraps(own)
    def rotation(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        whole = q.shape[-1] == k.shape[-1] == cos.shape[-1]  # else a part of each head alone is rotated
        if torch.compiler.is_compiling() or not _lean.get() or not whole or cos.requires_grad:
            return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return turn(q, cos, sin), turn(k, cos, sin)

    _exchanged[rotation] = own
    return rotation


def rotation_of_class(kind: type[nn.Module]) -> tuple[dict[str, Any], Rotation] | None:
    """The names of the module in which a class is written, and its own rotation, if its forward calls one that takes
    what most take."""
    forward = inspect.unwrap(kind.forward)
    if not inspect.isfunction(forward) or NAME not in forward.__code__.co_names:
        return None
    found = forward.__globals__.get(NAME)
    own = _exchanged.get(found, found)
    if not inspect.isfunction(own) or [*inspect.signature(own).parameters] != PARAMETERS:
        return None
    return forward.__globals__, own


def is_rotation(own: Rotation, device: torch.device, types: set[torch.dtype]) -> bool:
    """Whether a function gives the numbers of `turned`, and its gradients, for states and angles of all these types."""
    return all(_alike(own, device, *each) for each in itertools.product(types, types))


def _alike(own: Rotation, device: torch.device, kind: torch.dtype, angles: torch.dtype) -> bool:
    with trial(device) as generator:
        q, k = (random(generator, 1, heads, 3, 8, dtype=kind, device=device).requires_grad_() for heads in (4, 2))
        cos, sin = (random(generator, 1, 3, 8, dtype=angles, device=device) for _ in range(2))
        ours = _outcome((turn(q, cos[:, None], sin[:, None]), turn(k, cos[:, None], sin[:, None])), q, k)
        try:
            theirs = _outcome(own(q, k, cos, sin), q, k)
        except RuntimeError:  # shapes that don't go together: it wants angles of half a head (gpt-oss), say
            return False
    return apart_by(ours, theirs) <= TOLERANCE[min((kind, angles), key=lambda dtype: dtype.itemsize)]


def _outcome(made: tuple[torch.Tensor, torch.Tensor], *given: torch.Tensor) -> list[torch.Tensor]:
    slopes = [torch.linspace(-1, 2, each.numel(), device=each.device).view(each.shape).to(each.dtype) for each in made]
    return [*(each.detach() for each in made), *torch.autograd.grad(made, given, slopes)]


def lean_attention(kind: type[nn.Module], names: dict[str, Any], own: Rotation) -> Callable[..., Any]:
    """A forward of an attention module that rotates with `turned`. `names`, `own`: of `rotation_of_class`."""
    if names[NAME] is own:
        names[NAME] = exchanged(own)

    @functools.wraps(kind.forward)
    def forward(self: Any, *given: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return type(self).forward(self, *given, **named)
        token = _lean.set(True)
        try:
            return type(self).forward(self, *given, **named)
        finally:
            _lean.reset(token)

    return forward
