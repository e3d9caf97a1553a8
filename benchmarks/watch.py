"""What is seen of a training process from outside: the clock, its processor time and its memory, and those of a device
where it trains on one. Needs Linux."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracing import Trace


def status(name: str, process: int | str = "self") -> float:
    """A field of Linux' account of this process, or another, in MiB: VmRSS (memory now) or VmHWM (its peak)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def children() -> float:
    """The peaks of the processes that this one has, added, in MiB. Zombies have none."""
    total = 0.0
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, StopIteration):  # ended meanwhile
            if int(each.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                total += status("VmHWM", each.parent.name)
    return total


def differences(values: list[float]) -> list[float]:
    return [now - then for then, now in itertools.pairwise(values)]


def busy() -> float:
    """Seconds that this machine's cores have worked, for whomever, since it started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Device:
    """The clock and the memory of the device that a run trains on, by torch's module of that device. A CPU has none of
    its own, and is done when a call returns."""

    def __init__(self, kind: str):
        self.module = None
        if kind != "cpu":
            import torch

            self.module = torch.get_device_module(kind)

    def wait(self) -> None:
        """Until all that was asked of it is done: a call only puts work into its queue."""
        if self.module is not None:
            self.module.synchronize()

    def forget_peak(self) -> None:
        if self.module is not None:
            self.module.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        """MiB of its memory: of tensors now and at most since `forget_peak`, and of the allocator at most."""
        if self.module is None:
            return {}
        seen = {
            "now_mb": self.module.memory_allocated(),
            "peak_mb": self.module.max_memory_allocated(),
            "reserved_mb": self.module.max_memory_reserved(),
        }
        return {name: value / 2**20 for name, value in seen.items()}


class Watch:
    """What is seen of a run: when its steps end, what they held, and the time and memory they took.

    `device`: its type, as torch has it. `trace`: made of the step after those that are measured.
    """

    def __init__(self, device: str = "cpu", trace: Trace | None = None):
        self.device = Device(device)
        self.trace = trace
        self.device_before: dict[str, float] = {}
        self.device_peak: dict[str, float] = {}
        self.called = time.perf_counter()
        self.began = self.called
        self.before = 0.0
        self.ahead = 0.0  # seconds of the pass over all rows that makes a reference's log-probs
        self.ends: list[float] = []
        self.cpu: list[float] = []  # CPU seconds of this process, and of all, at `began` and the end of each step
        self.busy: list[float] = []
        self.tokens: list[int] = []  # cumulative
        self.supervised: list[int] = []  # of each step
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.rates: list[float] = []
        self.rows: list[int] = []  # completions that each step sampled
        self.parts: list[dict[str, float]] = []  # seconds of each step by what they went into, where that is known
        self.kernel = ""  # what computes the attention, as the side says it
        self.decoding: str | None = None  # how ft-host's own engine runs its steps, where it has a choice
        self.estimate: float | None = None  # the peak of memory that the side expected, in MiB
        self.notes: list[str] = []  # what the side said of its plan
        self.part: dict[str, float] = {}  # of the step that is under way
        self.peak = 0.0
        self.children = 0.0  # the peaks of processes that this one has

    def begin(self) -> None:
        """The first step comes next. Forgets the peak of what came before; with a device, of that alone."""
        if self.device.module is None:
            Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")
        self.device.wait()
        self.device.forget_peak()
        self.device_before = self.device.memory()
        self.began = time.perf_counter()
        self._note()

    def _note(self) -> None:
        self.cpu.append(time.process_time())
        self.busy.append(busy())

    @contextlib.contextmanager
    def timing(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add_time(what, time.perf_counter() - started)

    def add_time(self, what: str, seconds: float) -> None:
        self.part[what] = self.part.get(what, 0.0) + seconds

    def step(self) -> None:
        self.device.wait()
        self.ends.append(time.perf_counter())
        self._note()
        self.parts.append(self.part)
        self.part = {}
        if self.trace is None or len(self.ends) <= self.trace.after:
            self.peak = self._process_peak()
            self.device_peak = self.device.memory()
        if self.trace is not None:
            self.trace.stepped(len(self.ends), self.device.wait)

    def _process_peak(self) -> float:
        """MiB of this process at most: since training began, and with a device since the process did, loading included.
        Not every container has what the first needs, and there the device's memory counts."""
        if self.device.module is None:
            return status("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def report(self, imports: float) -> dict[str, Any]:
        """What was seen, of all steps but the one that a trace was made of."""
        count = len(self.ends) if self.trace is None else self.trace.after
        steps = {
            "seconds": differences([self.began, *self.ends]),
            "tokens": differences([0, *self.tokens]),
            "cpu": differences(self.cpu),
            "busy": differences(self.busy),
            "supervised": self.supervised,
            "losses": self.losses,
            "grad_norms": self.grad_norms,
            "rates": self.rates,
            "rows": self.rows,
            "parts": self.parts,
        }
        return {name: values[:count] for name, values in steps.items()} | {
            "imports_s": imports,
            "first_step_s": self.ends[0] - self.called,
            "ahead_s": self.ahead,
            "before_mb": self.before,
            "peak_mb": self.peak,
            "children_mb": self.children,
            "device_before": self.device_before,
            "device_peak": self.device_peak,
            "kernel": self.kernel,
            "decoding": self.decoding,
            "estimate": self.estimate,
            "notes": self.notes,
            "trace": None if self.trace is None else self.trace.summary,
        }
