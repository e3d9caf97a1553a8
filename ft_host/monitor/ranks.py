"""How long each rank works by itself in a step, and on how many tokens: whether one holds up the others, and why.

A step takes as long on every rank, since the ranks wait for each other in it. What tells them apart is a rank's own
time: that outside of the exchanges in which it may wait. It is that for its rows (reading, tokenising, completing,
rewarding, collating), and that for training, up to the last backward pass, within which DDP reduces gradients. With
FSDP2 ranks wait for each other within each layer, and the update alone is a rank's own. Completions that are made
beside the training are left out: a wait for them is no work.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.run import Run

CPU = torch.device("cpu")
STEPS = 20  # the last ones, whose medians are compared
LEAST = 5  # without so many nothing is said
WARMING = 2  # first steps of a process, which compile and fill caches


@dataclass(frozen=True)
class Own:
    """What one rank did by itself in a step: seconds, and the tokens of its micro-batches."""

    rows: float
    training: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.rows + self.training


class Stopwatch:
    """Time from here to `stop`: of this process, and on a GPU of what it computes there. To be read once the device is
    done with it."""

    def __init__(self, device: torch.device):
        self.events: list[Any] = []
        if device.type != "cpu":
            self.events = [devices.module_of(device).Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
        self.began, self.seconds = time.perf_counter(), 0.0

    def stop(self) -> None:
        self.seconds = time.perf_counter() - self.began
        if self.events:
            self.events[1].record()

    def read(self) -> tuple[float, float]:
        """Return the seconds of the process, and of the device; on a CPU both are the same."""
        return self.seconds, self.events[0].elapsed_time(self.events[1]) / 1000 if self.events else self.seconds


class RankTimes:
    """Measures this rank's own time; on the main process, compares that of all."""

    def __init__(self, run: Run):
        self.run = run
        self.rows = self.update = 0.0  # since the last exchange
        self.passes: Stopwatch | None = None  # the passes of this step
        self.waits: list[Stopwatch] = []  # within them
        self.waited = 0.0  # what `run.waited` was before them
        self.steps = 0
        self.window: deque[list[Own]] = deque(maxlen=STEPS)  # of each step, that of each rank
        if isinstance(run.model, DistributedDataParallel):
            # Between its own forward and that of what it wraps, it broadcasts buffers: ranks wait for each other.
            run.model.register_forward_pre_hook(lambda *_: self.waits.append(Stopwatch(run.device)))
            run.model.module.register_forward_pre_hook(lambda *_: self.waits[-1].stop() if self.waits else None)

    @contextlib.contextmanager
    def getting_rows(self) -> Iterator[None]:
        watch, waited = Stopwatch(CPU), self.run.waited
        yield
        watch.stop()
        if self.run.timeline is None:  # else it has waited for completions, perhaps
            self.rows += watch.seconds - (self.run.waited - waited)

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """The update, which counts for the next step: the exchange of this one is over."""
        watch = Stopwatch(CPU)
        yield
        watch.stop()
        self.update = watch.seconds

    def begin(self) -> None:
        """The passes of a step begin."""
        self.waits.clear()
        self.waited, self.passes = self.run.waited, Stopwatch(self.run.device)

    def end(self) -> None:
        """The last backward pass begins."""
        assert self.passes is not None, "they have begun"
        self.passes.stop()
        self.waited = self.run.waited - self.waited

    def own(self, tokens: int) -> Own:
        """Return what is exchanged of this step, once the device is done with its passes."""
        assert self.passes is not None, "they have begun"
        of_waits = [wait.read() for wait in self.waits]
        process, device = self.passes.read()
        process -= self.waited + sum(seconds for seconds, _ in of_waits)
        device -= sum(seconds for _, seconds in of_waits)
        passes = 0.0 if self.run.is_sharded else max(process, device if self.passes.events else 0.0)
        found = Own(self.rows, self.update + passes, tokens)
        self.rows = self.update = 0.0
        return found

    def compared(self, ranks: list[Own]) -> dict[str, float]:
        """Return the metrics of a step: how the rank that takes longest differs from the median of the others."""
        self.steps += 1
        if len(ranks) == 1 or self.steps <= WARMING:
            return {}
        self.window.append(ranks)
        if len(self.window) < LEAST:
            return {}
        by_rank = list(zip(*self.window, strict=True))
        slowest = max(range(len(ranks)), key=lambda rank: statistics.median(own.seconds for own in by_rank[rank]))
        others = [rank for rank in range(len(ranks)) if rank != slowest]

        def both(name: str) -> tuple[float, float]:
            values = [statistics.median(getattr(own, name) for own in of_rank) for of_rank in by_rank]
            return values[slowest], statistics.median(values[rank] for rank in others)

        tokens = [sum(own.tokens for own in of_rank) / len(of_rank) for of_rank in by_rank]
        metrics = {
            "perf/slowest_rank": float(slowest),
            "perf/slowest_rank_tokens": tokens[slowest],
            "perf/other_ranks_tokens": statistics.median(tokens[rank] for rank in others),
        }
        for name, what in (("seconds", "time"), ("rows", "rows_time"), ("training", "training_time")):
            metrics[f"perf/slowest_rank_{what}"], metrics[f"perf/other_ranks_{what}"] = both(name)
        return metrics
