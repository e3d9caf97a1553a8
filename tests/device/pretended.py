"""A pretended CUDA device, in a torch that was built without CUDA.

    from device import pretended

    pretended.start()                      # first of all: before accelerate or transformers are imported
    with pretended.log() as log: ...       # every copy between host and device and every wait, with the line that asked
    print(log.table(), log.launches)

`device.type` is "cuda" and `torch.cuda.is_available()` is true, so that whatever is there for CUDA runs: in this
project, in accelerate, in transformers, in torch. What `torch.compile` would give to Inductor, which has no compiler
for this device, runs uncompiled after the same tracing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

import torch

from device import as_cuda, build, waits

T = TypeVar("T")
CAPACITY = 8 << 30

backends: list[str | None] = []  # what groups of processes were asked for
_device: ModuleType | None = None
_listener: waits.Listener | None = None


def start(bf16: bool = True) -> None:
    """Put the device in the place of CUDA, for the rest of the process and for those that it forks. `bf16`: whether it
    has units for bfloat16. There are as many devices as torchrun has processes here. Raises RuntimeError where it
    can't be compiled."""
    global _device, _listener
    if _device is not None:
        return
    if why := build.missing():
        raise RuntimeError(why)
    _device = build.load()
    _device.start()
    _device.set_devices(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    _device.set_capacity(CAPACITY)
    _listener = waits.Listener(_device)
    made = as_cuda.functions(_device, _listener, bf16)
    for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):
        for name in made if module is torch.cuda else made.keys() & vars(module).keys():
            setattr(module, name, made[name])
    as_cuda.patch_storage(_device)
    _compile_without_inductor()
    _nccl_by_gloo()


def started() -> bool:
    return _device is not None


def set_devices(count: int) -> None:
    assert _device is not None, "pretended.start() comes first"
    _device.set_devices(count)


def log() -> contextlib.AbstractContextManager[waits.Log]:
    """A log of what happens in the block."""
    assert _listener is not None, "pretended.start() comes first"
    return _listener.log()


def within(unit: str, function: Callable[..., T]) -> Callable[..., T]:
    """The function, whose calls are units of a log (`Log.most_by_place`)."""
    assert _listener is not None, "pretended.start() comes first"
    return _listener.within(unit, function)


@contextlib.contextmanager
def capacity(size: int) -> Iterator[None]:
    """In the block the device has so many bytes: beyond them an allocation raises torch.OutOfMemoryError."""
    assert _device is not None, "pretended.start() comes first"
    before = _device.capacity()
    _device.set_capacity(size)
    try:
        yield
    finally:
        _device.set_capacity(before)


def memory() -> tuple[int, int]:
    """Bytes that are used now, and the most that were since the last `reset_peak`."""
    assert _device is not None, "pretended.start() comes first"
    return _device.used(), _device.peak()


def _compile_without_inductor() -> None:
    compile_ = torch.compile

    def traced(model: Any = None, *, backend: Any = "inductor", **how: Any) -> Any:
        if backend == "inductor":  # whose modes and options no other backend has
            backend, how = "eager", {name: value for name, value in how.items() if name not in ("mode", "options")}
        return compile_(model, backend=backend, **how)

    torch.compile = traced


def _nccl_by_gloo() -> None:
    """Where a process group is to have NCCL, gloo works in the same memory. What torch asks of a group's names stays:
    a group of NCCL alone exchanges objects on the device."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    init, collective_device = dist.init_process_group, c10d._get_object_coll_device

    def init_process_group(backend: str | None = None, *args: Any, **how: Any) -> None:
        backends.append(backend)
        init("cpu:gloo,cuda:gloo" if backend is None or "nccl" in backend else backend, *args, **how)

    def device_of_objects(group: Any = None) -> str:
        alone = backends and backends[-1] is not None and "cpu" not in backends[-1] and "nccl" in backends[-1]
        return "cuda" if alone else collective_device(group)

    dist.init_process_group = c10d.init_process_group = init_process_group
    c10d._get_object_coll_device = device_of_objects
    dist.is_nccl_available = c10d.is_nccl_available = lambda: True
