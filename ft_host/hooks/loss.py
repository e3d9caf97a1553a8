"""From a micro-batch to a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy
    from ft_host.run import Run
    from ft_host.types import LossOutput, ModelSpec, Row


@hookspec(firstresult=True)
def ft_models(config: RunConfig) -> dict[str, ModelSpec] | None:
    """Return the models of the run by role: "policy", unless it is a language model, and auxiliary models.

    Implemented by the method, or not at all: then the run has a language model and no other. Runs before anything is
    loaded, so that a source that does not fit is refused by then. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_annotate(rows: list[Row], run: Run) -> list[Row] | None:
    """Add values of auxiliary models to the rows of a step: reference log-probs, for instance.

    Implemented by the method, or not at all. Runs without gradient on this rank's rows of an optimizer step, before
    they are collated, and on its rows of an evaluation; once a rollout on its rows; and, for a model whose spec says
    `precompute`, before the first step on all rows. All ranks run it at once. Returns the same rows in the same order,
    with columns added (`ft_host.api.annotate` does it), or None to leave them as they are. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_step(rows: list[Row], run: Run) -> list[Row] | None:
    """Add statistics of the whole step to its rows, computed with the policy's current weights, without gradient.

    Implemented by the method, or not at all. Runs after `ft_annotate`, on this rank's rows of an optimizer step or an
    evaluation; all ranks run it at once, and `run.gather` brings their values together. Returns the same rows in the
    same order, with columns added, or None to leave them as they are. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_loss(model: Policy, batch: Batch, run: Run) -> LossOutput:
    """Return the loss of one micro-batch: terms, each a sum over its rows, by the name of the count that divides it.

    Implemented by the method. Runs once for each micro-batch, in training with gradient and in evaluation without. The
    host divides each term by `run.totals[name]`, its count in the whole step, and adds them over micro-batches and
    ranks. Must not gather, log, or read a tensor (`.item()`). Since 0.1.
    """
