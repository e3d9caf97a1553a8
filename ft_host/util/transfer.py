"""Tensors of the host to a device: all of them in one copy, which nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ft_host.util import devices

STAGED = ("cuda", "xpu")  # types of devices that copy from pageable memory by way of pinned memory, and wait for it
ALIGNED = 64  # bytes, of each tensor's first one: any type may begin there


def to_device(tensors: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """Return the same tensors on `device`, in their order; those in float64 in float32 where the device has none.

    From pageable memory each copy would make the host wait until the device has done all that it was asked for. So
    those of the host are laid out in one pinned buffer and copied at once: what is returned are views of that copy.
    """
    device = torch.device(device)
    widest = devices.widest(device)
    tensors = [tensor.to(widest) if tensor.dtype == torch.float64 else tensor for tensor in tensors]
    held = [index for index, tensor in enumerate(tensors) if tensor.device.type == "cpu"]
    if device.type not in STAGED or not held:
        return [tensor.to(device) for tensor in tensors]
    places, end = {}, 0
    for index in held:
        places[index] = end
        end += -(-tensors[index].nbytes // ALIGNED) * ALIGNED
    pinned = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for index in held:
        _part(pinned, places[index], tensors[index]).copy_(tensors[index])
    copied = pinned.to(device, non_blocking=True)
    return [
        _part(copied, places[index], tensor) if index in places else tensor.to(device)
        for index, tensor in enumerate(tensors)
    ]


def _part(buffer: torch.Tensor, begin: int, like: torch.Tensor) -> torch.Tensor:
    """The bytes from `begin` on as a tensor of the shape and type of `like`."""
    return buffer[begin : begin + like.nbytes].view(like.dtype).view(like.shape)
