"""Several ranks as threads of this process, for tests of communication between ranks. Imports no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

PATIENCE = 30  # seconds that a rank waits for the others

Gather = Callable[[Any], list[Any]]


class NobodyThere(Exception):
    """A rank waits for another one that has ended or doesn't arrive."""


def as_ranks(world_size: int, work: Callable[[int, Gather], Any]) -> list[Any]:
    """What `work(rank, gather)` gives on each rank, or what it raised there. `gather` is that of a run; it raises
    NobodyThere where ranks don't call it equally often."""
    changed = threading.Condition()
    rounds: list[dict[int, Any]] = []
    at = [0] * world_size  # the next round of each rank
    over: set[int] = set()
    ended: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        def gather(value: Any) -> list[Any]:
            number = at[rank]
            with changed:
                at[rank] += 1
                if number == len(rounds):
                    rounds.append({})
                here = rounds[number]
                here[rank] = value
                changed.notify_all()
                missing = changed.wait_for(
                    lambda: len(here) == world_size or {each for each in over if at[each] <= number}, PATIENCE
                )
            if missing is not True:
                raise NobodyThere(f"rank {rank} waits in exchange {number}; there are {sorted(here)}")
            return [here[each] for each in range(world_size)]

        try:
            ended[rank] = work(rank, gather)
        except Exception as error:
            ended[rank] = error
        with changed:
            over.add(rank)
            changed.notify_all()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended
