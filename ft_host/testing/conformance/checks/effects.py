"""What a loss touches beside its own number: the batch, other models, random states, the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.metrics import add_counts
from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.step import collated, loss_and_gradient, rows_and_run, shared_step

if TYPE_CHECKING:
    import torch

    from ft_host.batch import Batch
    from ft_host.run import Run
    from ft_host.testing.conformance.device_looks import Looks
    from ft_host.testing.conformance.subject import Subject
    from ft_host.types import LossOutput

SHOWN = 3  # lines of a method that a message names


def batch_kept(subject: Subject) -> Figures:
    run, rows = shared_step(subject)
    batch, output = _one_loss(run, rows)
    output.loss.backward()
    [expected] = collated(run, [rows])
    parts = dict(_parts(expected))
    for name, value in _parts(batch):
        if name not in parts:
            raise NotMet(f"ft_loss adds {name} to the batch")
        if not _equal(parts.pop(name), value):
            raise NotMet(f"ft_loss changes {name} of the batch")
    if parts:
        raise NotMet(f"ft_loss takes {', '.join(parts)} out of the batch")
    return {"loss": float(output.loss.detach())}


def frozen(subject: Subject) -> Figures:
    """Of a run with all weights trained, the models beside it; of one with an adapter, the weights below it too."""
    looked = 0
    for run, rows in (shared_step(subject), rows_and_run(subject, use_peft=True)):
        held = {f"the model {role!r}": model.held for role, model in run.models.items() if model.held is not None}
        kept = {
            f"{name} of {whose}": parameter
            for whose, module in (held | {"the policy": run.policy}).items()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        }
        before = {name: parameter.detach().clone() for name, parameter in kept.items()}
        loss_and_gradient(run, [rows])
        for name, parameter in kept.items():
            if parameter.requires_grad or parameter.grad is not None:
                raise NotMet(f"{name} is frozen, and gets a gradient")
            if not bool(parameter.equal(before[name])):
                raise NotMet(f"{name} is frozen, and has other values after ft_loss")
        looked += len(kept)
    return {"tensors": looked}


def metrics_detached(subject: Subject) -> Figures:
    import torch

    run, rows = shared_step(subject)
    _, output = _one_loss(run, rows)
    for name, metric in output.metrics.items():
        if any(isinstance(value, torch.Tensor) and value.requires_grad for _, value in metric.parts):
            raise NotMet(f"the metric {name!r} has a gradient; expected numbers, or tensors that are detached")
    return {"metrics": len(output.metrics)}


def random_kept(subject: Subject) -> Figures:
    """Python's, numpy's and torch's random states, before and after a batch and its loss."""
    from ft_host.util.seeds import random_states

    run, rows = shared_step(subject)
    hooks = {"ft_collate": lambda: run.collate(rows), "ft_loss": lambda: run.loss(batch)}
    [batch] = collated(run, [rows])
    run.totals = batch.counts
    for hook, call in hooks.items():
        before = random_states()
        call()
        moved = [name for name, state in random_states().items() if state != before[name]]
        if moved:
            raise NotMet(f"{hook} draws from the random state of {' and of '.join(moved)}")
    return {"hooks": len(hooks)}


def waits(subject: Subject) -> Figures:
    found = _looked_at(subject)
    if found.waits:
        raise NotMet(
            f"a micro-batch waits {len(found.waits)} times for the device: {'; '.join(found.waits[:SHOWN])}; expected"
            " none: each stops what a GPU is doing"
        )
    return {"waits": 0}


def device(subject: Subject) -> Figures:
    found = _looked_at(subject)
    if found.strangers:
        raise NotMet(f"on a GPU it fails: {'; '.join(found.strangers[:SHOWN])}; expected tensors of the batch's device")
    return {"strangers": 0}


# ---------------------------------------------------------------- parts of them


def _one_loss(run: Run, rows: list[dict[str, Any]]) -> tuple[Batch, LossOutput]:
    [batch] = collated(run, [rows])
    run.totals = add_counts([batch.counts])
    return batch, run.loss(batch)


def _looked_at(subject: Subject) -> Looks:
    """The same for both checks, once a method."""
    return subject.once("looks", lambda: _look(subject))


def _look(subject: Subject) -> Looks:
    from ft_host.testing.conformance.device_looks import looked_at

    run, rows = shared_step(subject)
    [batch] = collated(run, [rows])
    run.totals = add_counts([batch.counts])
    own = subject.package or Path(subject.plugin.location)
    with looked_at(own, [*_weights(run), *_tensors(batch)]) as found:
        run.loss(batch)
    return found


def _weights(run: Run) -> Iterator[torch.Tensor]:
    for module in (run.policy, *(model.held for model in run.models.values() if model.held is not None)):
        yield from module.parameters()
        yield from module.buffers()


def _parts(batch: Batch, within: str = "") -> Iterator[tuple[str, Any]]:
    """All that a batch holds, by name."""
    for field in dataclasses.fields(batch):
        value = vars(batch)[field.name]
        if field.name == "linked":
            for name, linked in value.items():
                yield from _parts(linked, f"{within}linked[{name!r}].")
        elif isinstance(value, dict):
            for name, each in value.items():
                yield f"{within}{field.name}[{name!r}]", each
        else:
            yield f"{within}{field.name}", value


def _tensors(batch: Batch) -> list[torch.Tensor]:
    import torch

    return [value for name, value in _parts(batch) if isinstance(value, torch.Tensor) and "host[" not in name]


def _equal(one: Any, other: Any) -> bool:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


CHECKS: list[Check] = [
    Check(
        id="loss-batch-kept",
        title="The loss leaves its batch as it is",
        about="method",
        why="A batch is used again: where a step is tried, and where diagnostics look at it.",
        looks_at="Every tensor, column and count of a batch before and after `ft_loss`.",
        mend="Use `x = x * y` in place of `x *= y` for what comes from the batch, and put nothing into its dicts.",
        test=batch_kept,
    ),
    Check(
        id="loss-frozen",
        title="What is frozen gets no gradient and keeps its values",
        about="method",
        why="A reference that is trained along is no reference, and its gradients fill the memory.",
        looks_at="The models of `ft_models`, and all weights below an adapter (`use_peft: true`), after loss and "
        "backward pass.",
        mend='Call auxiliary models as `run.models["reference"](batch, want=...)`, which gives values without '
        "gradient.",
        test=frozen,
    ),
    Check(
        id="loss-metrics-detached",
        title="Metrics carry no gradient",
        about="method",
        why="What has a gradient and no part in the loss is a term that was forgotten, or keeps in memory what its "
        "micro-batch has computed.",
        looks_at="The parts of each metric that `ft_loss` returns.",
        mend="Compute metrics under `torch.no_grad()`, or of `values.detach()`.",
        test=metrics_detached,
    ),
    Check(
        id="loss-random",
        title="Collating and the loss draw from no random state",
        about="method",
        why="Dropout and sampling would then depend on the number of micro-batches, and a resumed run on luck.",
        looks_at="Random states of Python, numpy and torch before and after `ft_collate` and `ft_loss`.",
        mend="Draw in `ft_prepare`, `ft_step` or `ft_rollout`, from a generator of its own that is seeded by the row "
        "or the step (`seed_of`, `torch.Generator`).",
        test=random_kept,
    ),
    Check(
        id="loss-waits",
        title="A micro-batch waits nowhere for the device",
        about="method",
        why="A GPU is kept busy by work that is asked for ahead. A look at one of its values waits for all of it.",
        looks_at="What `ft_loss` does, on a CPU, with weights and batch in the place of tensors of a device: values "
        "that become Python numbers (`.item()`, `float()`, `if tensor`), sizes that depend on values (`nonzero`, a "
        "mask as an index), and copies from and to the host.",
        mend="Leave numbers to the host, which reads all metrics of a step at once; use `torch.where` or a product in "
        "place of a mask as index; count on the host, in `ft_collate` (`batch.counts`, `batch.host`).",
        test=waits,
    ),
    Check(
        id="loss-device",
        title="The loss makes its tensors on the device of the batch",
        about="method",
        why="On a CPU all tensors meet; on a GPU one that was made without a device ends the run.",
        looks_at="Tensors that `ft_loss` makes without saying where (`torch.zeros(n)`), and operators in which they "
        "meet those of the batch or the model.",
        mend="Make them of others: `values.new_zeros(n)`, `torch.zeros_like(values)`, `torch.arange(n, "
        "device=values.device)`; or in `ft_collate`, as a column.",
        test=device,
    ),
]
