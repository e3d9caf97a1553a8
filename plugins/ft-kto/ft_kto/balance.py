"""Warns where the two weights don't balance the labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ft_host.api import Run
    from ft_kto.config import KTOConfig

ENOUGH = 64  # the least number of labels for a warning
MOST = 4 / 3  # the paper's bound, eq. 8


def weigh_labels(rows: list[dict[str, Any]], run: Run) -> None:
    """Count the labels of training, over ranks and restarts, and warn once if the weights don't balance them."""
    counts = run.gather((sum(row["label"] for row in rows), len(rows)))
    state = run.state
    state["desirable"] = state.get("desirable", 0) + sum(good for good, _ in counts)
    state["undesirable"] = state.get("undesirable", 0) + sum(rows - good for good, rows in counts)
    if not state.get("balance_said"):
        word = balance(state["desirable"], state["undesirable"], cast("KTOConfig", run.config))
        state["balance_said"] = word is not None
        if word is not None:
            run.say(word, "warning")


def balance(desirable: int, undesirable: int, config: KTOConfig) -> str | None:
    """Return a warning about these counts of labels, or None.

    The paper (eq. 8) wants desirable_weight × desirable : undesirable_weight × undesirable between 1 and 4/3. The
    labels so far are a sample: the ratio must be off by more than three standard errors of its logarithm.
    """
    if desirable + undesirable < ENOUGH:
        return None
    if not desirable or not undesirable:
        found, missing = ("desirable", "undesirable") if desirable else ("undesirable", "desirable")
        return (
            f"all of the first {desirable + undesirable} completions are {found}: KTO needs both. Is the label "
            f"column right? No weight can replace missing {missing} ones"
        )
    ratio = config.desirable_weight * desirable / (config.undesirable_weight * undesirable)
    doubt = math.exp(3 * math.sqrt(1 / desirable + 1 / undesirable))
    if 1 / doubt <= ratio <= MOST * doubt:
        return None
    low, high = config.desirable_weight / ratio, config.desirable_weight / ratio * MOST
    other_low, other_high = config.undesirable_weight * ratio / MOST, config.undesirable_weight * ratio
    return (
        f"{desirable} desirable and {undesirable} undesirable completions so far, with weights "
        f"{config.desirable_weight:g} and {config.undesirable_weight:g}: weighed, {ratio:.2f} to 1, and the paper "
        f"advises 1 to 4/3. Set either desirable_weight between {low:.3g} and {high:.3g}, or undesirable_weight "
        f"between {other_low:.3g} and {other_high:.3g}, not both"
    )
