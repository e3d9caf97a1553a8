"""Losses and gradients of micro-batches, as a step makes them."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from ft_host.metrics import add_counts
from ft_host.types import Row

if TYPE_CHECKING:
    import torch

    from ft_host.batch import Batch
    from ft_host.data.prepare import PrepareRow
    from ft_host.run import Run
    from ft_host.testing.conformance.subject import Subject


def rows_and_run(subject: Subject, rows: list[Row] | None = None, **changes: Any) -> tuple[Run, list[Row]]:
    """A run before its first step, and the rows of that step: of a method with rollouts, made of completions that
    don't depend on the weights."""
    from ft_host.testing.invariants import fixed_completions_of
    from ft_host.testing.ready import first_step

    with fixed_completions_of(subject.config(rows, **changes)) as config:
        return first_step(config, method_of(subject))


def shared_step(subject: Subject) -> tuple[Run, list[Row]]:
    """The same with no changes, made once for the checks that leave weights as they are. The rows are a copy."""
    from accelerate import Accelerator

    run, rows, state = subject.once("first step", lambda: _with_state(*rows_and_run(subject)))
    Accelerator(cpu=run.config.use_cpu)  # a run that was trained since has taken accelerate's state with it
    run.policy.zero_grad()
    run.state = copy.deepcopy(state)
    return run, copy.deepcopy(rows)


def _with_state(run: Run, rows: list[Row]) -> tuple[Run, list[Row], dict[str, Any]]:
    """With what the method keeps, as it is before the step, and a folder for what it says."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    return run, rows, copy.deepcopy(run.state)


def ready(subject: Subject, **changes: Any) -> Run:
    """A run of the subject before its first step, without rows."""
    from ft_host.testing.ready import ready_run

    return ready_run(subject.config(**changes), method_of(subject))


def prepares(subject: Subject, **changes: Any) -> tuple[Run, PrepareRow]:
    """A run before its first step, and its `ft_prepare`, with some fields changed."""
    from ft_host.data.prepare import PrepareRow

    run, _ = shared_step(subject)
    return run, PrepareRow((method_of(subject),), run.tokenizer, dataclasses.replace(run.config, **changes))


def method_of(subject: Subject) -> str:
    from ft_host.registry import reference

    return reference(subject.plugin) if subject.distribution else subject.plugin.location


def collated(run: Run, parts: list[list[Row]]) -> list[Batch]:
    """The micro-batches of a step, as the loop makes them."""
    from ft_host.training.step import before_collating

    return [run.collate(part).to(run.device) for part in before_collating(run, parts)]


def loss_and_gradient(run: Run, parts: list[list[Row]]) -> tuple[float, torch.Tensor]:
    """The loss of a step of these micro-batches, and its gradient of all that is trained, flat."""
    batches = collated(run, parts)
    run.totals = add_counts(batch.counts for batch in batches)
    run.policy.zero_grad()
    loss = 0.0
    for batch in batches:
        each = run.loss(batch).loss
        each.backward()
        loss += float(each.detach())
    return loss, gradient_of(run)


def gradient_of(run: Run) -> torch.Tensor:
    """The gradient of all that is trained, flat; 0 where there is none."""
    import torch

    trained = [p for p in run.policy.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
