"""What the host asks of a device that isn't the CPU, whatever its kind.

Which one there is, torch.accelerator says. Its memory and random state are asked of torch's module for its kind
(torch.cuda, torch.xpu, torch.mps, or that of a backend outside torch): torch.accelerator has no random state, tells
memory only where the allocator is one of torch's own, and its free memory only since 2.10. Where kinds truly differ, a
table below holds the difference.

Nobody of this project has run any of it on a GPU. For CUDA there are tests on a pretended device (tests/device); XPU
and MPS go through the same calls. docs/versions.md says what is known of each.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch

# The variable by which a process is told which devices of a kind to see. ROCm's kind is "cuda", and it reads the same.
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK", "npu": "ASCEND_RT_VISIBLE_DEVICES"}

TRITON = ("cuda", "xpu")  # kinds that Triton compiles for

# Whether a device has units for bfloat16: an emulation is slower than float32. Other kinds don't tell.
BFLOAT16: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
    "xpu": lambda: torch.xpu.is_bf16_supported(including_emulation=False),
}

# Kinds that torch may have no collectives for.
COLLECTIVES: dict[str, Callable[[], bool]] = {"mps": lambda: False, "xpu": torch.distributed.is_xccl_available}

# Kinds of which some devices, or all, have no float64.
FLOAT64: dict[str, Callable[[torch.device], bool]] = {
    "mps": lambda device: False,
    "xpu": lambda device: torch.xpu.get_device_properties(device).has_fp64,
}


def accelerator() -> torch.device | None:
    """Return the current accelerator of this process with its index, or None where there is none."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else torch.device(found.type, torch.accelerator.current_device_index())


def chosen(use_cpu: bool) -> torch.device:
    """Return the device that a run takes: the accelerator, unless there is none or the CPU is asked for."""
    return (None if use_cpu else accelerator()) or torch.device("cpu")


def module_of(device: torch.device) -> ModuleType:
    """Return torch's module for the kind of a device, such as torch.cuda."""
    return torch.get_device_module(device)


def count_of(kind: str) -> int:
    """Return how many devices of a kind there are, such as "cuda"."""
    return module_of(torch.device(kind)).device_count()


def name_of(device: torch.device) -> str:
    """Return the name of the model of a device, as its maker has it."""
    if device.type == "mps":  # torch has no name of it
        return f"mps, {platform.machine()}"
    return module_of(device).get_device_name(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given. The CPU never has to be waited for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def exchanges(device: torch.device) -> bool:
    """Return whether processes can exchange tensors of a device: torch has collectives for its kind."""
    return COLLECTIVES.get(device.type, lambda: True)()


# ---------------------------------------------------------------- types


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is as fast as it should be, so that it can be the default."""
    return BFLOAT16.get(device.type, lambda: False)()


def widest(device: torch.device) -> torch.dtype:
    """Return the widest float of a device: float64, or float32 where it has none."""
    return torch.float64 if FLOAT64.get(device.type, lambda device: True)(device) else torch.float32


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values in the widest float of its device: of long sums, float32 keeps few digits."""
    return tensor.to(widest(tensor.device))


# ---------------------------------------------------------------- random states


@contextlib.contextmanager
def forked_random(device: torch.device) -> Iterator[None]:
    """Put the random states of the CPU and of `device` back afterwards to where they were."""
    only_cpu = device.type == "cpu"
    with torch.random.fork_rng([]) if only_cpu else torch.random.fork_rng([device], device_type=device.type):
        yield


def random_state(device: torch.device) -> torch.Tensor:
    """Return the random state of an accelerator as bytes, a tensor on the CPU."""
    return module_of(device).get_rng_state(device)


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Undo of `random_state`."""
    module_of(device).set_rng_state(state, device)


# ---------------------------------------------------------------- memory


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of an accelerator. `allocated`: of live tensors. `reserved`: what torch has taken, for them and for later.
    Of both also the most so far. `free`: what the system would still give. `retries`: how often torch gave memory back
    in order to go on. None: the kind doesn't count it."""

    allocated: int
    reserved: int
    total: int
    free: int
    most_allocated: int | None
    most_reserved: int | None
    retries: int | None


def memory_of(device: torch.device) -> Memory:
    """Return the memory of an accelerator, without waiting for it."""
    if device.type == "mps":
        return _memory_of_mps()
    module = module_of(device)
    free, total = module.mem_get_info(device)
    return Memory(
        allocated=module.memory_allocated(device),
        reserved=module.memory_reserved(device),
        total=total,
        free=free,
        most_allocated=module.max_memory_allocated(device),
        most_reserved=module.max_memory_reserved(device),
        retries=module.memory_stats(device).get("num_alloc_retries"),
    )


def _memory_of_mps() -> Memory:
    """Memory that Metal shares with the CPU, of which it recommends a part. Nobody counts peaks."""
    reserved, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    return Memory(
        allocated=torch.mps.current_allocated_memory(),
        reserved=reserved,
        total=total,
        free=max(0, total - reserved),
        most_allocated=None,
        most_reserved=None,
        retries=None,
    )


def give_back(device: torch.device) -> None:
    """Return to the system the memory that torch has reserved and no tensor holds."""
    if device.type != "cpu":
        module_of(device).empty_cache()
