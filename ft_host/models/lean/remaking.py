"""Tensors that aren't kept for the backward pass, since what is kept anyway makes them again at little cost.

`remaking()` sets hooks on what autograd saves. A tensor is told by the graph behind it: if it is the output of a
recipe's node (or a view of it, or its copy in another type, as autocast makes), the node is kept instead, and the
backward pass makes the tensor again when it is wanted. The node holds its own inputs in any case.

What is kept otherwise is guarded as autograd does it: a tensor that was changed in place since raises RuntimeError.
With hooks, autograd itself doesn't look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ft_host.models.lean import gated, norm
from ft_host.models.lean.parts import Handle, Kept, active, asked

# Nodes whose output has the elements of their input in the same order.
SAME_ELEMENTS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ToCopyBackward0"))
LONGEST_CHAIN = 6


def _layer_norm(node: Any) -> torch.Tensor:
    states, mean, ratio = node._saved_input, node._saved_result1, node._saved_result2
    weight, bias = node._saved_weight, node._saved_bias
    out = (states.to(mean.dtype) - mean).mul_(ratio)
    out = out if weight is None else out.mul_(weight)
    return (out if bias is None else out.add_(bias)).to(states.dtype)


def _product(node: Any) -> torch.Tensor:
    return node._saved_self * node._saved_other


# By the name of a node: what makes its output again, from what it keeps for its own gradient.
RECIPES: dict[str, Callable[[Any], torch.Tensor]] = {
    norm.Norm._backward_cls.__name__: norm.remade,
    gated.Gated._backward_cls.__name__: gated.remade,
    "NativeLayerNormBackward0": _layer_norm,
    "SiluBackward0": lambda node: F.silu(node._saved_self),
    "GeluBackward0": lambda node: F.gelu(node._saved_self, approximate=node._saved_approximate),
    "MulBackward0": _product,
}


class Remade:
    """What a tensor is made again from. `types`: those that it goes through from the recipe's on, since each rounds."""

    __slots__ = ("node", "shape", "types")

    def __init__(self, node: Any, types: list[torch.dtype], shape: torch.Size):
        self.node, self.types, self.shape = node, types, shape

    def get(self) -> torch.Tensor:
        tensor = RECIPES[type(self.node).__name__](self.node)
        for dtype in self.types:
            tensor = tensor.to(dtype)
        return tensor.view(self.shape)


def _keeps_both(node: Any, name: str) -> bool:
    """Whether a product keeps both its factors: each is kept for the gradient of the other one."""
    return name != "MulBackward0" or all(before is not None for before, _ in node.next_functions)


def pack(tensor: torch.Tensor) -> Handle | Remade:
    parts = active()
    handle = None if parts is None else parts.taken(tensor)
    if handle is not None:
        return handle
    node, types = tensor.grad_fn, [tensor.dtype]
    for _ in range(LONGEST_CHAIN):
        if node is None:
            break
        name = type(node).__name__
        if name in RECIPES:
            if not tensor.is_contiguous() or not _keeps_both(node, name):
                break
            return Remade(node, types[::-1], tensor.shape)
        if name not in SAME_ELEMENTS:
            break
        node = node.next_functions[0][0]
        if name == "ToCopyBackward0" and node is not None:
            types.append(node._input_metadata[0].dtype)
    kept = Kept(tensor)
    if parts is not None:
        parts.kept.append(kept)
    return kept


def unpack(kept: Handle | Remade) -> torch.Tensor:
    return kept.get()


@contextlib.contextmanager
def remaking(layers: bool = True) -> Iterator[None]:
    """Inside this block autograd keeps no tensor that a recipe makes again. `layers`: False where layers are
    checkpointed, and so keep nothing."""
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), asked(layers):
        yield
