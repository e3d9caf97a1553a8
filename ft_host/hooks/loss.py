"""From a micro-batch to a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.hooks.data import Row
    from ft_host.models.policy import Policy
    from ft_host.run import Run
    from ft_host.types import LossOutput, ModelSpec


@hookspec(firstresult=True)
def ft_models(config: RunConfig) -> dict[str, ModelSpec] | None:
    """The models of the run by role: "policy" where it is not a language model, and companions ("reference", ...).

    Implemented by the method, or not at all: then the run has a language model and no companion. Runs before anything
    is loaded, so that a source that does not fit is refused by then. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_annotate(rows: list[Row], run: Run) -> list[Row] | None:
    """Give the rows of a step what companions say of them: reference log-probs, for instance.

    Implemented by the method, or not at all. Runs without gradient on this rank's rows of an optimizer step, before
    they are collated, and on its rows of an evaluation; for a companion whose spec says `precompute`, also before the
    first step on all rows. All ranks run it at once. Returns the same rows in the same order, with columns added (see
    `ft_host.models.annotate`). None: the rows as they are. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_step(rows: list[Row], run: Run) -> list[Row] | None:
    """Give the rows of a step statistics of the whole step, made with the policy's current weights, without gradient.

    Implemented by the method, or not at all. Runs after `ft_annotate`, on this rank's rows of an optimizer step or an
    evaluation; all ranks run it at once, and `run.gather` sees them all. Returns the same rows in the same order, with
    columns added. None: the rows as they are. Since 0.2.
    """


@hookspec(firstresult=True)
def ft_loss(model: Policy, batch: Batch, run: Run) -> LossOutput:
    """The loss of one micro-batch: each term a sum over its rows, divided by `run.totals[name]` of the whole step.

    Implemented by the method. Runs once per micro-batch, in training with gradient and in evaluation without; the host
    only adds what it returns over micro-batches and ranks. Never gathers, logs, or reads a tensor. Since 0.1.
    """
