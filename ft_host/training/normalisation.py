"""Checks before the first update that a loss which the method divides itself is divided by the step's totals.

The same rows, once, twice, and in two halves, then have one loss. A plain sum doubles when rows are given twice; a
division by the batch's own counts doubles when they are split.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ft_host.contract.blame import fault
from ft_host.contract.names import Named
from ft_host.errors import HookError
from ft_host.types import Row
from ft_host.util.memory import FORWARD, oom_context
from ft_host.util.ranks import everywhere
from ft_host.util.seeds import random_states, set_random_states

if TYPE_CHECKING:
    from ft_host.run import Run
    from ft_host.types import LossOutput


ROWS = 4  # that are tried; more where those of one group share a prompt
# A mistake doubles the loss. Less than these shares of it is round-off, and a loss below the others is a difference of
# larger numbers, of which round-off may be any share: it says nothing.
SHARES = {"float32": 0.02, "low": 0.1}
LOWEST = {"float32": 1e-4, "low": 0.05}


def check_normalised(run: Run, micro_batches: list[list[Row]], totals: dict[str, float]) -> None:
    """Try a few rows of the first micro-batch, without gradient, dropout or a trace in the run. All ranks must call it.

    Losses given as terms are divided by the host, and one that says why it depends on the split is left alone. Raises
    HookError, on all ranks, for a loss that is divided in another way.
    """
    rows = sample(micro_batches[0] if micro_batches else [])
    with _undisturbed(run), oom_context(FORWARD, run.step + 1):
        counts = run.collate(rows).counts
        single, double = (_totals(counts, totals, times) for times in (1, 2))
        once = _loss(run, rows, single)
        tried = once.terms is None and once.depends_on_split is None
        if not any(run.gather(tried)):
            return
        twice = float(_loss(run, rows + rows, double).loss)
        first, second = halves(rows)
        whole = single if len(first) + len(second) == len(rows) else double
        cut = float(_loss(run, first, whole).loss) + float(_loss(run, second, whole).loss)
    problem = verdict(float(once.loss), twice, cut, _precision(run)) if rows and tried else None
    for refused in run.gather((len(rows), problem)):
        if refused[1] is not None:
            raise everywhere(_refusal(run, *refused))


def sample(rows: list[Row]) -> list[Row]:
    """Return the first rows of a micro-batch, whole groups."""
    found: list[Row] = []
    for group in groups(rows):
        if len(found) >= ROWS:
            break
        found += group
    return found


def groups(rows: list[Row]) -> list[list[Row]]:
    """Return rows of a group that follow each other together, and every other row by itself."""
    found: list[list[Row]] = []
    for row in rows:
        if found and "group" in row and found[-1][-1].get("group") == row["group"]:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def halves(rows: list[Row]) -> list[list[Row]]:
    """Return the rows in two micro-batches, groups whole; with a single group, or no rows, the same ones in both."""
    found = groups(rows)
    if len(found) < 2:
        return [rows, rows]
    middle = len(found) // 2
    return [[row for group in part for row in group] for part in (found[:middle], found[middle:])]


def verdict(once: float, twice: float, cut: float, precision: str) -> tuple[float, float, float] | None:
    """Describe the three losses if they can't be those of a sum over rows that is divided by the step's totals."""
    found = (once, twice, cut)
    size = max(abs(value) for value in found)
    if not math.isfinite(size) or size < LOWEST[precision]:  # what isn't finite ends the step by itself
        return None
    return found if max(found) - min(found) > SHARES[precision] * size else None


def _refusal(run: Run, count: int, found: tuple[float, float, float]) -> HookError:
    once, twice, cut = found
    size = 0.05 * max(abs(value) for value in found)
    guess = "it isn't a sum over rows divided by run.totals"
    if abs(twice - 2 * once) < size and min(abs(cut - once), abs(cut - twice)) < size:
        guess = "it is a sum that nothing divides"
    elif abs(twice - once) < size and abs(cut - 2 * once) < size:
        guess = "it is divided by counts of the micro-batch in place of run.totals"
    rows = "1 row" if count == 1 else f"{count} rows"
    return fault(
        run.plugins,
        "ft_loss",
        f"returned a loss that depends on how a step is split: {rows} of the first step give {once:.6g}, given "
        f"twice {twice:.6g}, and cut in two {cut:.6g}, which should be one number; {guess}. Give the sums, and the "
        "host divides: LossOutput(terms={count: sum over the rows}); or, if it must depend on the split, say why: "
        "LossOutput(loss=..., depends_on_split='...')",
    )


def _loss(run: Run, rows: list[Row], totals: dict[str, float]) -> LossOutput:
    run.totals = totals
    with run.accelerator.autocast():
        return run.loss(run.collate(rows).to(run.device))


def _totals(counts: dict[str, float], totals: dict[str, float], times: int) -> dict[str, float]:
    """Return the totals of a step of these rows alone; for a count of 0, that of the whole step, so that nothing is
    divided by 0."""
    return Named("run.totals", {name: times * (counts.get(name) or value) for name, value in totals.items()})


def _precision(run: Run) -> str:
    low = run.accelerator.mixed_precision != "no" or any(p.dtype != torch.float32 for p in run.policy.parameters())
    return "low" if low else "float32"


@contextlib.contextmanager
def _undisturbed(run: Run) -> Iterator[None]:
    """Without gradient and dropout; the state that the calls change is restored."""
    states, totals, state = random_states(), run.totals, copy.deepcopy(run.state)
    training = run.model.training
    run.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        run.model.train(training)
        run.totals, run.state = totals, state
        run.policy.routing = run.policy.aux_loss = None
        set_random_states(states)
