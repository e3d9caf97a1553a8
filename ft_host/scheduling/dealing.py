"""Prompts to the ranks that complete them, and rows to the ranks that learn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutPlan
from ft_host.metrics import MAX, MIN, SUM
from ft_host.scheduling.unit import Unit
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.run import Run

Local = dict[str, tuple[str, list[tuple[str, float]]]]  # of `Accumulator.local`
Share = tuple[list[Row], list[dict[str, Any]]]  # rows, and samples: none, or one for each row

MERGE = {SUM: lambda a, b: a + b, MIN: min, MAX: max}


def units_of(rows: list[Row], first: int, plan: RolloutPlan, step: int, epoch: float, now: float) -> list[Unit]:
    """Return a unit for each prepared prompt, numbered from `first` on. Without groups that are left out, rollout and
    group are those that the prompt would have with `rollouts: sync`."""
    units = []
    for number, row in enumerate(rows, first):
        rollout, group = divmod(number, plan.prompts)
        prompt = row | {"group": group}
        units.append(Unit(number=number, rollout=rollout, step=step, rows=[prompt], epoch=epoch, times={"drawn": now}))
    return units


def shares(units: list[Unit], rooms: list[int]) -> list[list[Unit]]:
    """Deal units out to ranks in turn, to each no more than it has room for."""
    out: list[list[Unit]] = [[] for _ in rooms]
    rank = 0
    for unit in units:
        while len(out[rank]) >= rooms[rank]:
            rank = (rank + 1) % len(rooms)
        out[rank].append(unit)
        rank = (rank + 1) % len(rooms)
    return out


def rows_of(units: list[Unit]) -> list[Share]:
    """Return the rows and samples of each unit that was learnt from, their groups numbered by the unit."""
    found = []
    for unit in units:
        if unit.made is not None and unit.made.rows:
            rows = [row | {"group": unit.number} for row in unit.made.rows]
            found.append((rows, unit.made.samples))
    return found


def dealt(run: Run, groups: list[Share]) -> Share:
    """Return this rank's share of the groups that the main process has. All ranks must call it."""
    if run.world_size == 1:
        return joined(groups)
    import torch.distributed as dist

    mine: list[Any] = [None]
    parts = [joined(groups[rank :: run.world_size]) for rank in range(run.world_size)] if run.rank == 0 else None
    dist.scatter_object_list(mine, parts, src=0)
    return mine[0]


def joined(groups: list[Share]) -> Share:
    return [row for rows, _ in groups for row in rows], [sample for _, samples in groups for sample in samples]


def added(locals_: list[Local]) -> Local:
    """Return the sums of several units as one, in the order given."""
    out: Local = {}
    for local in locals_:
        for name, (formula, parts) in local.items():
            if name not in out:
                out[name] = (formula, [(how, value) for how, value in parts])
                continue
            before = out[name][1]
            out[name] = (formula, [(how, MERGE[how](a, b)) for (how, a), (_, b) in zip(before, parts, strict=True)])
    return out


def kept_units(states: list[dict[str, Any]], rank: int, world_size: int, shared: bool) -> dict[str, Any]:
    """Return this rank's part of what the ranks of a checkpoint had under way: as it was, or, on another number of
    ranks or with another source, dealt out anew."""
    if not shared and len(states) == world_size and all(state["quota"] for state in states):
        return states[rank]
    out = dict(states[0])
    for what in ("units", "left_out"):
        every = sorted((unit for state in states for unit in state[what]), key=lambda unit: unit["number"])
        out[what] = (every if rank == 0 else []) if shared else every[rank::world_size]
    return out
