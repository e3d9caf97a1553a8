"""One step of a training, as torch's profiler saw it: a trace for Perfetto, and what took the time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 15  # kernels that the summary lists
# What attention is called by kernels and operators: of flash attention and cuDNN, of torch's own, and of flex, which
# Inductor names after its template.
ATTENTION = re.compile(r"flash|fmha|flex|attention|attn|triton_tem", re.IGNORECASE)


class Trace:
    """A trace of step `after` + 1, written to `path`. `stepped` is told of the end of each step.

    `summary` is empty until then.
    """

    def __init__(self, path: str, after: int):
        self.path = Path(path)
        self.after = after
        self.summary: dict[str, Any] = {}
        self.profile: Any = None
        self.began = 0.0

    def stepped(self, steps: int, wait: Callable[[], None]) -> None:
        """`wait`: until the device has done what it was asked to do."""
        if steps == self.after:
            from torch.profiler import profile

            self.profile = profile()  # of the CPU, and of a device where torch can see into it
            self.profile.__enter__()
            self.began = time.perf_counter()
        elif steps == self.after + 1:
            wait()
            seconds = time.perf_counter() - self.began
            self.profile.__exit__(None, None, None)
            self.profile.export_chrome_trace(str(self.path))
            self.summary = {"file": self.path.name, **summary_of(self.profile.key_averages(), seconds)}


def summary_of(events: Any, seconds: float) -> dict[str, Any]:
    """What took the time of a step of so many seconds: the kernels of a device, or operators where only a CPU ran.

    `events`: torch's averages by name. `busy` is the share of the step in which the device was at work, `launches` what
    it was given to do, copies included; both are None for a CPU.
    """
    from torch.autograd import DeviceType

    kernels = [event for event in events if event.device_type != DeviceType.CPU]
    if kernels:
        took = {event.key: (event.self_device_time_total / 1e6, event.count) for event in kernels}
    else:
        took = {event.key: (event.self_cpu_time_total / 1e6, event.count) for event in events}
    order = sorted(took, key=lambda name: -took[name][0])
    return {
        "seconds": seconds,
        "busy": sum(spent for spent, _ in took.values()) / seconds if kernels else None,
        "launches": sum(count for _, count in took.values()) if kernels else None,
        "kernels": [{"name": name, "seconds": took[name][0], "count": took[name][1]} for name in order[:LONGEST]],
        "attention": [name for name in order if ATTENTION.search(name)],
    }
