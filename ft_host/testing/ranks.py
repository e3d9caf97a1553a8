"""Several ranks as threads of this process, for tests of what ranks tell each other. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 20  # seconds that a rank waits for the others

Gather = Callable[[Any], list[Any]]


def as_ranks(world_size: int, work: Callable[[int, Gather], Any]) -> list[Any]:
    """What `work(rank, gather)` gives on each rank, or what it raised there. `gather` is that of a run.

    A rank that waits for one that has ended, or has failed, raises BrokenBarrierError.
    """
    barrier = threading.Barrier(world_size, timeout=PATIENCE)
    told: list[Any] = [None] * world_size
    ended: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        def gather(value: Any) -> list[Any]:
            told[rank] = value
            barrier.wait()
            found = list(told)
            barrier.wait()  # nobody tells the next thing before all have heard this one
            return found

        try:
            ended[rank] = work(rank, gather)
        except Exception as error:
            ended[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended
