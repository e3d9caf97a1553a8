"""Measures the memory of a step, and disk space, for the run's diagnostics. It is cheap enough for every step (a few
microseconds on a CPU)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

from ft_host.metrics import maximum
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.metrics import Metric
    from ft_host.run import Run

MB = 2**20


def resident_mb() -> float:
    """Return the resident memory of the process."""
    return psutil.Process().memory_info().rss / MB


class PeakMemory:
    """The most resident memory of this process so far, in megabytes.

    Systems count it themselves, each in its own unit, and psutil gives the count of Windows alone. So the resident set
    is looked at where it is large: after each forward pass, before the update and after it.
    """

    def __init__(self) -> None:
        self.resident = 0.0

    def look(self) -> float:
        self.resident = max(self.resident, resident_mb())
        return self.resident


PEAK = PeakMemory()  # of the process, whatever runs it has


def peak_memory_mb(device: torch.device) -> float:
    """Return peak memory so far in megabytes: torch's allocations on a GPU that counts them, else the resident set of
    the process."""
    most = None if device.type == "cpu" else devices.memory_of(device).most_allocated
    return PEAK.look() if most is None else most / MB


def memory_metrics(run: Run) -> dict[str, Metric]:
    """Return metrics of memory, each of the rank that has most. `perf/memory_mb`: resident memory of the process. On a
    GPU: allocated memory, the most that torch has reserved so far, its share of the device, and how often torch had to
    free cached memory to go on."""
    PEAK.look()
    metrics = {"perf/memory_mb": maximum(resident_mb())}
    if run.device.type != "cpu":
        memory = devices.memory_of(run.device)
        reserved = memory.reserved if memory.most_reserved is None else memory.most_reserved
        metrics |= {
            "perf/memory_allocated_mb": maximum(memory.allocated / MB),
            "perf/memory_reserved_mb": maximum(reserved / MB),
            "perf/memory_share": maximum(reserved / memory.total),
        }
        if memory.retries is not None:
            metrics["perf/alloc_retries"] = maximum(memory.retries)
    return metrics


def disk_facts(run: Run) -> dict[str, float]:
    """Return facts about disk space: free megabytes where the run writes, and the approximate size of a checkpoint: the
    trained weights, and two values of AdamW for each."""
    trained = [p for p in run.policy.parameters() if p.requires_grad]
    saved = trained if run.config.use_peft else list(run.policy.parameters())
    weights = sum(p.numel() * p.element_size() for p in saved)
    state = 2 * sum(p.numel() * p.element_size() for p in trained)
    free = psutil.disk_usage(str(run.folder.path)).free
    return {"system/disk_free_mb": free / MB, "system/checkpoint_mb": (weights + state) / MB}
