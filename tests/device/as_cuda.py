"""The functions of `torch.cuda`, of a pretended device. A build of torch without CUDA has them, and they raise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

PROPERTIES = {
    "name": "Pretended GPU",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "warp_size": 32,
    "max_threads_per_multi_processor": 2048,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "L2_cache_size": 50 << 20,
    "uuid": "GPU-0",
    "gcnArchName": "",
}


NO_TROUBLE = {"num_alloc_retries": 0, "num_ooms": 0}


class Stream:
    """All work is done at once, in order, so that all streams are one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device = torch.device("cuda", 0)
        self.device_index = self.stream_id = self.cuda_stream = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def wait_stream(self, stream: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return 0


class Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def elapsed_time(self, event: Event) -> float:
        return 1.0


def functions(device: ModuleType, report: Callable[[str, str, int], None], bf16: bool) -> dict[str, Any]:
    """What `torch.cuda` gets, by name."""

    def index(which: Any = None) -> int:
        if which is None:
            return device.device()
        return which if isinstance(which, int) else (torch.device(which).index or 0)

    class OnDevice:
        def __init__(self, which: Any) -> None:
            self.which = None if which is None else index(which)

        def __enter__(self) -> None:
            self.before = device.device()
            if self.which is not None and self.which >= 0:
                device.set_device(self.which)

        def __exit__(self, *_: Any) -> None:
            device.set_device(self.before)

    def exchange(which: int) -> int:
        before = device.device()
        if which >= 0:
            device.set_device(which)
        return before

    def maybe_exchange(which: int) -> int:  # dynamo wants another object than `exchange`
        return exchange(which)

    def statistics(which: Any = None) -> dict[str, int]:
        used, peak = device.used(), device.peak()
        kinds = [f"{what}_bytes.all" for what in ("allocated", "reserved", "active")]
        return {f"{kind}.current": used for kind in kinds} | {f"{kind}.peak": peak for kind in kinds} | NO_TROUBLE

    def nothing(*_: Any, **__: Any) -> None: ...

    def state_of(which: Any = None) -> torch.Tensor:
        return device.random_state()

    def set_state(state: torch.Tensor, which: Any = None) -> None:
        device.set_random_state(state)

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": nothing,
        "_lazy_init": nothing,
        "_lazy_call": lambda function, **_: function(),
        "_is_in_bad_fork": lambda: False,
        "device_count": device.devices,
        "current_device": device.device,
        "set_device": lambda which: device.set_device(index(which)),
        "device": OnDevice,
        "_exchange_device": exchange,
        "_maybe_exchange_device": maybe_exchange,
        "can_device_access_peer": lambda *_: True,
        "get_device_properties": lambda _=None: SimpleNamespace(total_memory=device.capacity(), **PROPERTIES),
        "get_device_name": lambda _=None: PROPERTIES["name"],
        "get_device_capability": lambda _=None: (PROPERTIES["major"], PROPERTIES["minor"]),
        "get_arch_list": lambda: ["sm_90"],
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
        "is_tf32_supported": lambda: True,
        # memory
        "mem_get_info": lambda _=None: (device.capacity() - device.used(), device.capacity()),
        "memory_allocated": lambda _=None: device.used(),
        "max_memory_allocated": lambda _=None: device.peak(),
        "memory_reserved": lambda _=None: device.used(),
        "max_memory_reserved": lambda _=None: device.peak(),
        "memory_stats": statistics,
        "reset_peak_memory_stats": lambda _=None: device.reset_peak(),
        "empty_cache": nothing,
        "ipc_collect": nothing,
        # streams
        "synchronize": lambda _=None: report("sync", "torch.cuda.synchronize", 0),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda _=None: Stream(),
        "default_stream": lambda _=None: Stream(),
        "set_stream": nothing,
        "stream": lambda stream: stream if stream is not None else contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: False,
        # random numbers
        "get_rng_state": state_of,
        "set_rng_state": set_state,
        "get_rng_state_all": lambda: [device.random_state()],
        "set_rng_state_all": lambda states: device.set_random_state(states[0]),
        "manual_seed": device.seed,
        "manual_seed_all": device.seed,
        "seed": nothing,
        "seed_all": nothing,
        "initial_seed": lambda: 0,
    }


def patch_storage(device: ModuleType) -> None:
    """Two methods of storages that a build without CUDA has for the CPU alone; FSDP2 calls them."""
    resize, clone = torch.UntypedStorage.resize_, torch.UntypedStorage.clone

    def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        if storage.device.type != "cuda":
            return resize(storage, size)
        device.resize_storage(bytes_of(storage), size)
        return storage

    torch.UntypedStorage.resize_ = resize_
    torch.UntypedStorage.clone = lambda storage: (
        clone(storage) if storage.device.type != "cuda" else bytes_of(storage).clone().untyped_storage()
    )
