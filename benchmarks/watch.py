"""What is seen of a training process from outside: the clock, its processor time and its memory. Needs Linux."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any


def status(name: str) -> float:
    """A field of Linux' account of this process, in MiB: VmRSS (memory now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def differences(values: list[float]) -> list[float]:
    return [now - then for then, now in itertools.pairwise(values)]


def busy() -> float:
    """Seconds that this machine's cores have worked, for whomever, since it started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Watch:
    """What is seen of a run: when its steps end, what they held, and the time and memory they took."""

    def __init__(self):
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
        self.peak = 0.0

    def begin(self) -> None:
        """The first step comes next. Forgets the peak of what came before."""
        Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")
        self.began = time.perf_counter()
        self._note()

    def _note(self) -> None:
        self.cpu.append(time.process_time())
        self.busy.append(busy())

    def step(self) -> None:
        self.ends.append(time.perf_counter())
        self._note()
        self.peak = status("VmHWM")

    def report(self, imports: float) -> dict[str, Any]:
        return {
            "imports_s": imports,
            "first_step_s": self.ends[0] - self.called,
            "ahead_s": self.ahead,
            "seconds": differences([self.began, *self.ends]),
            "tokens": differences([0, *self.tokens]),
            "cpu": differences(self.cpu),
            "busy": differences(self.busy),
            "supervised": self.supervised,
            "losses": self.losses,
            "before_mb": self.before,
            "peak_mb": self.peak,
        }
