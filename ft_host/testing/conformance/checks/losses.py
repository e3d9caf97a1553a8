"""The loss of a few rows: what must not change it, and what it must not touch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.step import loss_and_gradient, rows_and_run

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

REL = 2e-5  # of float32, over a few thousand additions


def finite(subject: Subject) -> Figures:
    run, rows = rows_and_run(subject)
    loss, gradient = loss_and_gradient(run, [rows])
    size = float(gradient.norm())
    if not (math.isfinite(loss) and math.isfinite(size)):
        raise NotMet(f"the loss of {len(rows)} rows is {loss}, the norm of its gradient {size}")
    if size == 0:
        raise NotMet(f"the loss of {len(rows)} rows is {loss:.6g} and has no gradient: nothing would be learnt")
    return {"loss": loss, "grad_norm": size}


def additive(subject: Subject) -> Figures:
    """Once, twice, cut in two: the sums of the parts over the counts of the whole are the same number."""
    run, rows = rows_and_run(subject)
    half = len(rows) // 2
    once, gradient = loss_and_gradient(run, [rows])
    found = {"twice": [rows, rows], "cut in two": [rows[:half], rows[half:]]}
    for how, parts in found.items():
        loss, other = loss_and_gradient(run, parts)
        apart = float((other - gradient).norm() / gradient.norm())
        if not math.isclose(loss, once, rel_tol=REL, abs_tol=1e-6) or apart > 10 * REL:
            raise NotMet(
                f"{len(rows)} rows have the loss {once:.6g}, the same {how} {loss:.6g} (gradients differ by"
                f" {apart:.2g} of their size)"
            )
    return {"loss": once}


CHECKS: list[Check] = [
    Check(
        id="loss-finite",
        title="The loss of a few rows is a finite number, and so is its gradient, which isn't 0",
        about="method",
        why="A loss without a gradient trains nothing, and says so nowhere.",
        looks_at="Loss and gradient of the rows of a first step, on a model of two layers in float32.",
        mend="Look for a detach, an empty mask, a log of 0 or a division by a count that can be 0.",
        test=finite,
    ),
    Check(
        id="loss-additive",
        title="The loss is a sum over rows, divided by counts of the whole step",
        about="method",
        why="Else accumulation, a token budget and a second GPU change what is learnt.",
        looks_at="Loss and gradient of some rows once, twice, and cut in two micro-batches of one step.",
        mend="Return `terms` by the name of the count that divides each, or divide `loss` by `run.totals`, not by a "
        "count of the batch. Declare it with the reason if the formula itself couples the rows of a step.",
        test=additive,
    ),
]
