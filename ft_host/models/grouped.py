"""Grouped products, which a mixture of experts computes with, in autocast's type.

torch leaves them out of autocast (pytorch issue 174763): experts held in float32 would compute in float32 where all
other products are in bfloat16, many times slower on a GPU.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

KINDS = ("CPU", "CUDA", "XPU", "MPS", "PrivateUse1")  # of devices, as keys of autocast name them


@functools.cache
def join_autocast() -> torch.library.Library:
    """Add the operator to autocast, for this process. The copies that it makes of weights go the way of those that
    autocast makes for a linear layer."""
    library = torch.library.Library("aten", "IMPL")  # what it adds goes with it
    for kind in KINDS:
        key = getattr(torch._C.DispatchKey, f"Autocast{kind}")
        library.impl("_grouped_mm", functools.partial(_grouped, torch._C.DispatchKeySet(key)), key.name)
    return library


def _grouped(autocast: Any, left: torch.Tensor, right: torch.Tensor, *rest: Any) -> torch.Tensor:
    dtype = torch.get_autocast_dtype(left.device.type)
    left, right = (each.to(dtype) if each.dtype == torch.float32 else each for each in (left, right))
    with torch._C._ExcludeDispatchKeyGuard(autocast):
        return torch.ops.aten._grouped_mm(left, right, *rest)
