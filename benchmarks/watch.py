"""What is seen of a training process from outside: the clock, its processor time and its memory. Needs Linux."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
        self.grad_norms: list[float] = []
        self.rates: list[float] = []
        self.rows: list[int] = []  # completions that each step sampled
        self.parts: list[dict[str, float]] = []  # seconds of each step by what they went into, where that is known
        self.part: dict[str, float] = {}  # of the step that is under way
        self.peak = 0.0
        self.children = 0.0  # the peaks of processes that this one has

    def begin(self) -> None:
        """The first step comes next. Forgets the peak of what came before."""
        Path("/proc/self/clear_refs").write_text("5")
        self.before = status("VmRSS")
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
        self.ends.append(time.perf_counter())
        self._note()
        self.parts.append(self.part)
        self.part = {}
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
            "grad_norms": self.grad_norms,
            "rates": self.rates,
            "rows": self.rows,
            "parts": self.parts,
            "before_mb": self.before,
            "peak_mb": self.peak,
            "children_mb": self.children,
        }
