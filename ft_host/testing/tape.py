"""A stand-in for the graphs of a device, on any device: it records the operators of a function and runs them again.

As with a graph, the function itself runs once, while it is recorded, and then changes nothing; what is replayed reads
and writes the tensors of that time, with the numbers of that time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Call = tuple[Any, tuple[Any, ...], dict[str, Any], Any]  # operator, arguments, result

# What a graph can't hold: they tell the host a value of the device, or have a result whose size depends on values.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "bincount", "equal")


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []  # what was written, and what was there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: aten::{name}")
        written = _written(func, args, kwargs)
        self.before += [(tensor, tensor.clone()) for tensor in written]
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result


class Tapes:
    """A `Recorder` of ft_host.generation.frames: `replays` steps have been replayed, `tapes` are what was recorded.

    Replays are hidden from modes that count operators, as Python launches none of them.
    """

    def __init__(self) -> None:
        self.tapes: list[list[Call]] = []
        self.replays = 0

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        recording = Recording()
        with recording:
            step()
        for tensor, value in reversed(recording.before):
            tensor.copy_(value)
        self.tapes.append(recording.calls)

        def replay() -> None:
            self.replays += 1
            with _disable_current_modes():
                for func, args, kwargs, result in recording.calls:
                    _again(func, args, kwargs, result)

        return replay


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that an operator writes into."""
    found = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            found += [tensor for tensor in tree_leaves(value) if isinstance(tensor, torch.Tensor)]
    return found


def is_view(func: Any) -> bool:
    """Whether an operator's results are views of what it is given: nothing is launched for them."""
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Run an operator once more; its results go where they went when it was recorded."""
    if is_view(func):
        return
    new = func(*args, **kwargs)
    if _written(func, args, kwargs):
        return
    for old, value in zip(tree_leaves(result), tree_leaves(new), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != value.data_ptr():
            old.copy_(value)
