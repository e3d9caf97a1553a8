"""What a loss would make a GPU wait for, found on a CPU.

The weights and the batch count as tensors of the device, and so does what is computed of them. Tensors that a function
makes without saying where are of the host. What is on neither side (made on the batch's device) may meet both.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ft_host

HOST = Path(ft_host.__file__).parent
# The host's own: what happens below them is not the method's doing.
BELOW = tuple(str(HOST / part) for part in ("models", "contract", "util/transfer.py"))
# Operators whose result is known on the host, or has a size that depends on values.
LOOKS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal")
COPIES = ("tolist", "cpu")  # to the host; `.numpy()` alone is for a CPU, a GPU refuses it
FILLED = ("tensor", "as_tensor")  # with values that are on the host
MAKERS = (*FILLED, *"zeros ones full empty arange linspace eye rand randn randint randperm".split())
MIXED = ("copy_", "_to_copy", "index", "index_put_", "index_put")  # take tensors of both sides


@dataclass
class Looks:
    """`waits`: where the host waits for the device. `strangers`: where a tensor of the host meets one of the device,
    which a GPU refuses. Each is a line of the method, with what is done there."""

    waits: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)


@contextlib.contextmanager
def looked_at(own: Path, on_device: Iterable[torch.Tensor]) -> Iterator[Looks]:
    """Record while the context lasts. `own`: the folder of the method's modules, or its file."""
    found = Looks()
    sides = _Sides(own, found)
    for tensor in on_device:
        sides.mark(tensor, sides.device)
    with _Calls(sides), _Operators(sides):
        yield found


class _Sides:
    """Which storages are the device's and which the host's. All are kept, so that none is another's after it."""

    def __init__(self, own: Path, found: Looks) -> None:
        self.own, self.found = str(own), found
        self.device: set[int] = set()
        self.host: set[int] = set()
        self.kept: list[torch.Tensor] = []

    def mark(self, tensor: torch.Tensor, side: set[int]) -> None:
        self.kept.append(tensor)
        side.add(tensor.untyped_storage()._cdata)

    def on(self, tensor: torch.Tensor, side: set[int]) -> bool:
        return tensor.untyped_storage()._cdata in side

    def waits(self, what: str) -> None:
        if (place := self.place()) is not None:
            self.found.waits.append(f"{what} at {place}")

    def meets(self, what: str) -> None:
        if (place := self.place()) is not None:
            self.found.strangers.append(f"{what} at {place}")

    def place(self) -> str | None:
        """The line of the method that asks, None where the host itself does."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self.own):
                return f"{Path(file).name}:{frame.f_lineno}"
            if file.startswith(BELOW):
                return None
            frame = frame.f_back
        return None


class _Calls(TorchFunctionMode):
    """Calls of torch's functions, as they are written: which say where a tensor is made."""

    def __init__(self, sides: _Sides) -> None:
        super().__init__()
        self.sides = sides

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, sides = getattr(func, "__name__", ""), self.sides
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        to_host = name in COPIES or (name == "to" and "cpu" in (*args[1:2], kwargs.get("device")))
        if first is not None and to_host and sides.on(first, sides.device):
            sides.waits(f".{name}() of a tensor of the device")
        result = func(*args, **kwargs)
        if name in MAKERS and isinstance(result, torch.Tensor) and first is None:
            if kwargs.get("device") is None:
                sides.mark(result, sides.host)
            elif name in FILLED:
                sides.waits(f"torch.{name}(..., device=...), a copy of values that are on the host,")
        elif name == "to" and first is not None and sides.on(first, sides.host) and _says_where(args[1:], kwargs):
            sides.waits(".to(device) of a tensor of the host")
            result = result.clone()
            sides.host.discard(result.untyped_storage()._cdata)  # of neither side
        return result


def _says_where(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(each, torch.device | str | torch.Tensor) for each in (*args, *kwargs.values()))


class _Operators(TorchDispatchMode):
    """What is computed: of which tensors, and whether the host has to look at them."""

    def __init__(self, sides: _Sides) -> None:
        super().__init__()
        self.sides = sides

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sides = self.sides
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        of_device = [each for each in given if sides.on(each, sides.device)]
        of_host = [each for each in given if sides.on(each, sides.host)]
        name = func._schema.name.removeprefix("aten::")
        if of_device and _looks(name, args, kwargs):
            sides.waits(f"aten::{name}")
        if of_device and name not in MIXED and any(each.dim() for each in of_host):
            shapes = ", ".join(str(tuple(each.shape)) for each in of_host if each.dim())
            sides.meets(f"aten::{name} with a tensor {shapes} that is on the host")
        result = func(*args, **kwargs)
        side = sides.device if of_device else sides.host if of_host else None
        for each in tree_leaves(result):
            if side is not None and isinstance(each, torch.Tensor):
                sides.mark(each, side)
        return result


def _looks(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in LOOKS:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put_", "index_put"):  # a mask has to be counted; filled with one number it needn't be
        masked = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in args[1])
        return masked and (name == "index" or args[2].numel() != 1)
    return False
