"""The loss of a few rows: what must not change it."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.step import collated, gradient_of, loss_and_gradient, ready, rows_and_run, shared_step

if TYPE_CHECKING:
    import torch

    from ft_host.batch import Batch
    from ft_host.run import Run
    from ft_host.testing.conformance.subject import Subject

REL = 2e-5  # of float32, over a few thousand additions
ABS = 1e-6  # of a loss that is a difference of larger numbers
LEAST_ALIKE = 0.9  # cosine of a gradient in bfloat16 and in float32: round-off of a model of two layers leaves 0.99


def finite(subject: Subject) -> Figures:
    run, rows = shared_step(subject)
    loss, gradient = loss_and_gradient(run, [rows])
    size = float(gradient.norm())
    if not (math.isfinite(loss) and math.isfinite(size)):
        raise NotMet(f"the loss of {len(rows)} rows is {loss}, the norm of its gradient {size}")
    if size == 0:
        raise NotMet(f"the loss of {len(rows)} rows is {loss:.6g} and has no gradient: nothing would be learnt")
    return {"loss": loss, "grad_norm": size}


def additive(subject: Subject) -> Figures:
    """Once, twice, cut in two: the sums of the parts over the counts of the whole are the same number."""
    from ft_host.training.normalisation import halves

    run, rows = shared_step(subject)
    once = loss_and_gradient(run, [rows])
    middle = len(rows) // 2
    parts = halves(rows) if _whole_groups(run) else [rows[:middle], rows[middle:]]
    for how, each in {"twice": [rows, rows], "cut in two": parts}.items():
        _same(once, loss_and_gradient(run, each), f"{len(rows)} rows", how)
    return {"loss": once[0]}


def row_order(subject: Subject) -> Figures:
    from ft_host.training.normalisation import groups

    run, rows = shared_step(subject)
    turned = rows[::-1]
    if _whole_groups(run):
        found = groups(rows)
        if len(found) < 2:
            raise DoesNotApply("the rows of a step are one group, whose order may mean something")
        turned = [row for group in found[::-1] for row in group]
    once = loss_and_gradient(run, [rows])
    _same(once, loss_and_gradient(run, [turned]), f"{len(rows)} rows", "in the opposite order")
    return {"loss": once[0]}


def padding(subject: Subject) -> Figures:
    """The same weights, the same rows: one flat row without padding, and a padded rectangle."""
    run, rows = shared_step(subject)
    once = loss_and_gradient(run, [rows])
    padded = ready(subject, segment_attention="none")
    _same(once, loss_and_gradient(padded, [rows]), f"{len(rows)} rows without padding", "padded to a rectangle")
    return {"loss": once[0]}


def prompt(subject: Subject) -> Figures:
    """A target in a prompt is moved to another place and token: if it counts, the loss is another one."""
    formats = [each for each in ("prompt-completion", *subject.formats) if each in subject.formats]
    format = next((each for each in formats if each != "language modeling"), None)
    if format is None:
        raise DoesNotApply("its rows have no prompts")
    raw = subject.rows(format)
    run, rows = shared_step(subject) if format == subject.formats[0] else rows_and_run(subject, raw)
    [batch] = collated(run, [rows])
    if not len(batch.targets):
        raise DoesNotApply("its batches have no targets: a score is learnt")
    inside = _in_prompts(run, batch, [row["prompt"] for row in raw])
    run.totals = batch.counts
    once, moved = (float(run.loss(each).loss.detach()) for each in (batch, _moved(batch, inside)))
    if not math.isclose(moved, once, rel_tol=REL, abs_tol=ABS):
        raise NotMet(
            f"{len(inside)} of {len(batch.targets)} targets are tokens of prompts, and the loss of {len(rows)} rows"
            f" depends on them: it is {once:.6g}, and {moved:.6g} with others in their place; expected the same"
        )
    return {"targets": len(batch.targets), "in_prompts": len(inside)}


def nothing(subject: Subject) -> Figures:
    """An empty micro-batch in a step of other rows, and a step in which no row has anything to learn."""
    import torch

    run, rows = shared_step(subject)
    [batch] = collated(run, [rows])
    run.totals = counts = dict(batch.counts)
    with _calls(run) as expected:
        run.loss(batch)
    for what, totals in (
        ("a micro-batch without rows", counts),
        ("a step in which there is nothing to learn", dict.fromkeys(counts, 0)),
    ):
        run.totals = totals
        run.policy.zero_grad()
        with _calls(run) as calls:
            loss = run.loss(run.collate([]).to(run.device)).loss
        if float(loss.detach()) != 0:
            raise NotMet(f"the loss of {what} is {float(loss.detach())}, expected 0")
        loss.backward()
        gradient = gradient_of(run)
        if not bool(torch.isfinite(gradient).all()) or float(gradient.norm()):
            raise NotMet(f"the gradient of {what} has the norm {float(gradient.norm())}, expected 0")
        if all(p.grad is None for p in run.policy.parameters()):
            raise NotMet(
                f"the loss of {what} depends on no weight: its backward pass reaches none, and a rank with other rows"
                " would wait for it forever; expected what `model(batch, ...)` gives of the empty batch, times 0 or"
                " summed"
            )
        if calls != expected:
            raise NotMet(
                f"the loss of {what} calls {_named(calls)}, and that of rows {_named(expected)}: with sharded weights"
                " ranks would wait for each other forever"
            )
    return {"counts": len(counts)}


def low_precision(subject: Subject) -> Figures:
    import torch

    run, rows = shared_step(subject)
    _, exact = loss_and_gradient(run, [rows])
    low = ready(subject, bf16=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = loss_and_gradient(low, [rows])
    if not math.isfinite(loss) or not bool(torch.isfinite(gradient).all()):
        raise NotMet(f"in bfloat16 the loss is {loss}, the norm of its gradient {float(gradient.norm())}")
    alike = float(torch.cosine_similarity(exact, gradient, dim=0))
    if alike < LEAST_ALIKE:
        raise NotMet(
            f"the gradient in bfloat16 points elsewhere than in float32: a cosine of {alike:.3f}, expected at least"
            f" {LEAST_ALIKE}"
        )
    return {"cosine": alike}


# ---------------------------------------------------------------- parts of them


@contextlib.contextmanager
def _calls(run: Run) -> Iterator[Counter[str]]:
    """How often each model is called while the context lasts."""
    found: Counter[str] = Counter()
    held = {role: model.held for role, model in run.models.items() if model.held is not None}
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: found.update([name]))
        for name, module in ({"the policy": run.policy} | held).items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _named(calls: Counter[str]) -> str:
    return ", ".join(f"{name} {count} times" for name, count in sorted(calls.items())) or "no model"


def _whole_groups(run: Run) -> bool:
    return run.rollouts is not None and bool(run.rollouts.whole_groups)


def _same(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], what: str, how: str) -> None:
    (loss, gradient), (again, second) = one, other
    apart = float((second - gradient).norm() / gradient.norm())
    if not math.isclose(again, loss, rel_tol=REL, abs_tol=ABS) or not apart <= 10 * REL:
        raise NotMet(
            f"{what} have the loss {loss:.6g}, {how} {again:.6g} ({REL:.0e} of it allowed); the gradients differ by"
            f" {apart:.2g} of their size ({10 * REL:.0e} allowed)"
        )


def _in_prompts(run: Run, batch: Batch, prompts: list[str]) -> list[int]:
    """Which targets are tokens of the text's prompt. Raises DoesNotApply where no text begins with one."""
    from ft_host.data.texts import texts_of

    sources, targets = batch.sources.tolist(), batch.targets.tolist()
    found: set[int] = set()
    begun = False
    for text in texts_of(batch):
        last = ""
        for end in range(1, len(text.ids)):
            said = run.tokenizer.decode(text.ids[: end + 1], skip_special_tokens=True)
            if not any(each.startswith(said) for each in prompts) or last == said != "":
                break  # also at a token that says nothing: a completion may begin with its end
            begun, last = True, said
            before, id = text.places[end - 1], text.ids[end]
            found |= {i for i, (place, target) in enumerate(zip(sources, targets)) if (place, target) == (before, id)}
    if not begun:
        raise DoesNotApply("no text of a batch begins with the prompt of its row")
    return sorted(found)


def _moved(batch: Batch, inside: list[int]) -> Batch:
    """The batch with other targets at these places, predicted from its first token."""
    import dataclasses

    sources, targets = batch.sources.clone(), batch.targets.clone()
    sources[inside] = 0
    targets[inside] = (targets[inside] + 1) % int(targets.max() + 1)
    return dataclasses.replace(batch, sources=sources, targets=targets)


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
    Check(
        id="loss-row-order",
        title="The order of the rows of a micro-batch doesn't matter",
        about="method",
        why="Which row stands where is chance: it changes with the number of processes and with a token budget.",
        looks_at="Loss and gradient of some rows, and of the same rows the other way round; of whole groups where the"
        " plan of a rollout says `whole_groups`.",
        mend="Sum over rows without regard to their place. What a row needs of another belongs into its own columns "
        "(`ft_prepare`, `ft_step`, `ft_rollout`).",
        test=row_order,
    ),
    Check(
        id="loss-padding",
        title="Padding doesn't matter",
        about="method",
        why="Models that can't take a flat batch get a padded rectangle, and must learn the same.",
        looks_at="Loss and gradient of some rows in a flat batch, and with `segment_attention: none`, which pads them.",
        mend="Use what `model(batch, want=...)` gives for each target, row or end, not the model's own outputs, which "
        "have places for padding.",
        test=padding,
    ),
    Check(
        id="loss-prompt",
        title="Tokens of prompts carry no loss",
        about="method",
        why="A model that learns its prompts learns to ask. Users who want it should read so in the package's docs.",
        looks_at="The loss of rows with prompts, and the same with every target in a prompt replaced by another token.",
        mend="Give the prompt's tokens the label -100 (IGNORE). Declare it with the reason if the method is to learn "
        "from prompts.",
        test=prompt,
    ),
    Check(
        id="loss-nothing",
        title="A batch with nothing to learn has a loss of 0, and a backward pass that reaches the weights",
        about="method",
        why="A rank that has no rows left still takes part in the reductions of the others: NaN spoils their gradients,"
        " and a missing backward pass stops the run.",
        looks_at="Loss and gradient of `ft_collate([])`, in a step of other rows and in one whose counts are all 0, "
        "and which models it calls how often.",
        mend="Call the model in every batch and return a sum of what it gives: the sum of nothing is 0. Don't take a "
        "mean over the batch, and don't leave `ft_loss` early.",
        test=nothing,
    ),
    Check(
        id="loss-bf16",
        title="It runs in bfloat16",
        about="method",
        why="On GPUs that is what runs use unless they say otherwise.",
        looks_at="Loss and gradient of some rows with `bf16: true`: finite, and the direction of the gradient that of "
        "float32.",
        mend="Products of matrices are in bfloat16 there, and what the model gives for targets in float32: turn them "
        "to float32 (`.float()`) before sums and differences, and make tensors of others (`values.new_zeros(n)`).",
        test=low_precision,
    ),
]
