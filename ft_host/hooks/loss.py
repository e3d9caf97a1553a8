"""From a micro-batch to a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from ft_host.batch import Batch
    from ft_host.models.policy import Policy
    from ft_host.run import LossOutput, Run


@hookspec(firstresult=True)
def ft_loss(model: Policy, batch: Batch, run: Run) -> LossOutput:
    """The loss of one micro-batch: each term a sum over its rows, divided by `run.totals[name]` of the whole step.

    Implemented by the method. Runs once per micro-batch, in training with gradient and in evaluation without; the host
    only adds what it returns over micro-batches and ranks. Never gathers, logs, or reads a tensor. Since 0.1.
    """
