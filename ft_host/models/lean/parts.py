"""What an attention call over segments keeps: nothing that is a part of a tensor kept anyway, or joined of such parts.

- Keys and values of a segment with ancestors are joined of theirs and its own: they are joined again.
- Outputs of segments are joined to the call's output, which the next layer keeps: theirs are parts of that.
- Rotated queries and keys are rotated again where their norm and what rotates them are ours, as the graph tells.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch

from ft_host.models.lean import norm, rotary

NORM = norm.Norm._backward_cls.__name__
TURNED = rotary.Turned._backward_cls.__name__
VIEWS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"))


class Kept:
    """A tensor as it was when it was saved."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: torch.Tensor):
        # detached: an output that held its own node would never be freed
        self.tensor, self.version = tensor.detach(), tensor._version

    def get(self) -> torch.Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of {tuple(self.tensor.shape)} that the backward pass needs was changed in place: it is at "
                f"version {self.tensor._version}, and was saved at {self.version}"
            )
        return self.tensor


class Rotated:
    """Queries or keys of all segments, made again from what goes into their norm. Held until all parts were taken."""

    def __init__(self, tensor: torch.Tensor, node: Any, cos: Kept, sin: Kept, dims: tuple[int, int]):
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.node, self.cos, self.sin, self.dims = node, cos, sin, dims
        self.uses = self.taken = 0
        self.made: torch.Tensor | None = None

    def make(self) -> torch.Tensor:
        before = list(self.shape)
        first, second = self.dims
        before[first], before[second] = before[second], before[first]
        states = norm.remade(self.node).view(before).transpose(first, second)
        return rotary.turned(states, self.cos.get(), self.sin.get())

    def take(self) -> torch.Tensor:
        if self.made is None:
            self.made = self.make().to(self.dtype)
        made, self.taken = self.made, self.taken + 1
        if self.taken >= self.uses:
            self.made, self.taken = None, 0
        return made


class Cut:
    """One segment of `Rotated`."""

    __slots__ = ("length", "start", "whole")

    def __init__(self, whole: Rotated, start: int, length: int):
        self.whole, self.start, self.length = whole, start, length

    def get(self) -> torch.Tensor:
        return self.whole.take().narrow(2, self.start, self.length)


class Joined:
    """Parts, joined along the tokens."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[Kept | Cut]):
        self.parts = parts

    def get(self) -> torch.Tensor:
        return torch.cat([part.get() for part in self.parts], 2)


Handle = Kept | Cut | Joined


def rotation_of(tensor: torch.Tensor) -> Rotated | None:
    """What makes rotated queries or keys, (1, heads, T, D), again; None where that isn't known."""
    node = tensor.grad_fn
    if not _asked.get() or type(node).__name__ != TURNED:
        return None
    source = node.next_functions[0][0]
    if type(source).__name__ != "TransposeBackward0":
        return None
    dims = source._saved_dim0, source._saved_dim1
    source = source.next_functions[0][0]
    while type(source).__name__ in VIEWS:
        source = source.next_functions[0][0]
    if type(source).__name__ != NORM or max(dims) >= tensor.dim():
        return None
    cos, sin = node.saved_tensors
    return Rotated(tensor, source, Kept(cos), Kept(sin), dims)


class Parts:
    """Of one call: `handles` by the id of tensors that live as long as it does, and what was kept meanwhile."""

    def __init__(self) -> None:
        self.handles: dict[int, Handle] = {}
        self.kept: list[Kept] = []
        self.alive: list[torch.Tensor] = []  # an id means nothing after that

    def rotated(self, tensor: torch.Tensor, found: Rotated | None) -> None:
        """`tensor` is what `found` makes, in its own type."""
        if found is not None:
            found.dtype = tensor.dtype
            self._stand(tensor, Cut(found, 0, tensor.shape[2]))

    def cut(self, whole: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        """`parts` are the segments of a tensor."""
        handle, start = self.handles.get(id(whole)), 0
        for part in parts if isinstance(handle, Cut) else ():
            self._stand(part, Cut(handle.whole, start, part.shape[2]))
            start += part.shape[2]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join tensors, (1, heads, L, D), along their tokens."""
        whole = torch.cat([*parts], 2)
        if whole.requires_grad:
            handles = [self.handles.get(id(part)) for part in parts]
            pieces = [each if isinstance(each, Cut) else Kept(part) for each, part in zip(handles, parts, strict=True)]
            self._stand(whole, Joined(pieces))
        return whole

    def _stand(self, tensor: torch.Tensor, handle: Handle) -> None:
        self.alive.append(tensor)
        self.handles[id(tensor)] = handle

    def taken(self, tensor: torch.Tensor) -> Handle | None:
        """What takes the place of a tensor that is saved; None where the call knows of nothing."""
        handle = self.handles.get(id(tensor))
        for each in handle.parts if isinstance(handle, Joined) else [handle]:
            if isinstance(each, Cut):
                each.whole.uses += 1
        return handle

    def settle(self, outputs: Sequence[torch.Tensor], whole: torch.Tensor) -> None:
        """`whole`, (1, T, heads, D), is joined of `outputs`, (1, heads, L, D): what was kept of them is of it now."""
        places, start = {}, 0
        for output in outputs:
            places[output.data_ptr(), output.shape] = start
            start += output.shape[2]
        for kept in self.kept:
            at = places.get((kept.tensor.data_ptr(), kept.tensor.shape))
            if at is not None:
                part = whole.detach().narrow(1, at, kept.tensor.shape[2]).transpose(1, 2)
                kept.tensor, kept.version = part, whole._version


_call: ContextVar[Parts | None] = ContextVar("ft_host_parts", default=None)
# Where layers are checkpointed nobody asks: what they save is dropped anyway, and to look at what a node of the graph
# has saved would make the whole layer again.
_asked: ContextVar[bool] = ContextVar("ft_host_parts_asked", default=False)


@contextlib.contextmanager
def asked(wanted: bool) -> Iterator[None]:
    """Whether attention calls inside this block tell what their tensors are made of."""
    token = _asked.set(wanted)
    try:
        yield
    finally:
        _asked.reset(token)


def active() -> Parts | None:
    """The parts of the attention call that runs."""
    return _call.get()


def current() -> Parts:
    """The same, or parts that nobody asks for."""
    return _call.get() or Parts()


@contextlib.contextmanager
def attention_call() -> Iterator[Parts]:
    """What is told to the `Parts` inside this block stands for what autograd saves there."""
    parts = Parts()
    if not _asked.get():
        yield parts
        return
    token = _call.set(parts)
    try:
        yield parts
    finally:
        _call.reset(token)
