"""Notices that a run hangs: no step for a long time. It is a thread, since the training thread can't report its own
hang."""

from __future__ import annotations

import faulthandler
import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from ft_host.hooks import hookimpl
from ft_host.util.console import tell

if TYPE_CHECKING:
    from ft_host.run import Run

LEAST = 1800.0  # seconds, as in SageMaker Debugger's StalledTraining
STEPS = 10  # median steps that one step may take
ASIDE = 4  # factor on the limit during evaluation and checkpoints
LOOK = 5.0  # seconds between two checks


class StallDetector:
    """A sink of the run's metrics, on the main process. `relax` is for work that takes longer than a step."""

    def __init__(self, run: Run):
        self.run = run
        self.times: deque[float] = deque(maxlen=100)
        self.last = time.monotonic()
        self.factor = 1
        self.told = False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="ft-host-stall", daemon=True)
        self.thread.start()

    @hookimpl
    def ft_log(self, entry, run):
        if entry["kind"] == "train":
            self.times.append(entry["perf/step_time"])
        self.last, self.told = time.monotonic(), False

    def relax(self, begins: bool) -> None:
        """Called when an evaluation or a checkpoint begins, and when it ends."""
        self.factor, self.last = ASIDE if begins else 1, time.monotonic()

    @property
    def limit(self) -> float:
        median = statistics.median(self.times) if self.times else 0.0
        return max(LEAST, STEPS * median) * self.factor

    def close(self) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(min(LOOK, LEAST / 4)):
            silent = time.monotonic() - self.last
            if silent > self.limit and not self.told:
                self.told = True
                try:
                    self._tell(silent)
                except OSError as error:  # the disk may be what hangs; a thread's error would only be a traceback
                    text = f"no step for {silent:.0f} seconds, and that can't be written down: {error}"
                    tell(text, "warning", self.run.config.progress)

    def _tell(self, silent: float) -> None:
        """Write the stacks of all threads to stacks.txt of the run, before anything else can go wrong."""
        with (self.run.folder.path / "stacks.txt").open("a", encoding="utf-8") as file:
            file.write(f"no step for {silent:.0f} seconds after step {self.run.step}\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
        self.run.record_facts({"watch/silent_seconds": round(silent, 1), "watch/silent_after_step": self.run.step})
