"""Methods that make their rows in rollouts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from unittest import mock

from ft_host.run import Run
from ft_host.testing import ahead
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.numbers import compare
from ft_host.testing.conformance.step import collated, loss_and_gradient, method_of, rows_and_run
from ft_host.testing.invariants import lines, run_in

if TYPE_CHECKING:
    from ft_host.config import RolloutConfig
    from ft_host.testing.conformance.subject import Subject
    from ft_host.types import Row

NEEDED = {
    "group": "the number that the prompt's row has",
    "length": "its tokens, prompt included",
    "shared": "tokens that rows of its group have in common",
}
SAME = 1e-4  # nats: round-off of two ways through the same model in float32
TWICE: dict[str, Any] = {"per_device_train_batch_size": 8}  # rows of two prompts, where a prompt has four


def sampled(subject: Subject, seed: int = 42) -> tuple[Run, list[Row]]:
    """A run before its first step and the rows of that, sampled by the built-in backend."""
    from ft_host.testing.ready import first_step

    return first_step(subject.config(seed=seed, **TWICE), method_of(subject))


def first_rollout(subject: Subject) -> list[Row]:
    return subject.once("rows of a first rollout", lambda: sampled(subject)[1])


def seeded(subject: Subject) -> Figures:
    rows = first_rollout(subject)
    run, again = sampled(subject)
    for number, (one, other) in enumerate(zip(rows, again, strict=True)):
        for name in one:
            if one[name] != other[name]:
                raise NotMet(
                    f"a rollout made twice with one seed: row {number} has {name} = {short(one[name])}, then"
                    f" {short(other[name])}"
                )
    if run.config.samples_policy and rows == sampled(subject, seed=43)[1]:  # type: ignore[attr-defined]
        raise NotMet(f"seeds 42 and 43 give the same {len(rows)} rows")
    return {"rows": len(rows)}


def short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def kept(subject: Subject) -> Figures:
    rows = first_rollout(subject)
    for number, row in enumerate(rows):
        for name, meaning in NEEDED.items():
            if isinstance(row.get(name), bool) or not isinstance(row.get(name), int):
                found = short(row[name]) if name in row else "missing"
                raise NotMet(f"row {number} of a rollout: {name} is {found}; expected a whole number: {meaning}")
        if row["shared"] > row["length"]:
            raise NotMet(f"row {number} of a rollout shares {row['shared']} tokens and has {row['length']}")
        for name, value in row.items():
            try:
                back = json.loads(json.dumps(value))
            except (TypeError, ValueError) as error:
                raise NotMet(f"row {number} of a rollout: {name} is {short(value)}, which JSON can't hold") from error
            if back != value:
                raise NotMet(f"row {number} of a rollout: {name} is {short(value)}, and {short(back)} after JSON")
    return {"columns": sorted(rows[0])}


def groups(subject: Subject) -> Figures:
    """The rows of a prompt cut apart, where the method doesn't ask for whole groups."""
    run, rows = rows_and_run(subject, **TWICE)
    plan = run.rollouts
    assert plan is not None
    if plan.rows_per_prompt == 1:
        raise DoesNotApply("a prompt has one row")
    if plan.whole_groups is None:
        raise NotMet(
            f"a prompt has {plan.rows_per_prompt} rows, and the method doesn't say whether its loss compares them"
            " (whole_groups is None)"
        )
    if plan.whole_groups:
        parts = [[row for row in rows if row["group"] == group] for group in dict.fromkeys(r["group"] for r in rows)]
        how = "in micro-batches of one prompt"
    else:
        parts, how = [rows[::2], rows[1::2]], "with the rows of each prompt in two micro-batches"
    once, _ = loss_and_gradient(run, [rows])
    cut, _ = loss_and_gradient(run, parts)
    return {"apart": compare([{"step": 1, "loss": once}], [{"step": 1, "loss": cut}], how)}


def logprobs(subject: Subject) -> Figures:
    """What the loss sees of a sampled token at the first step is what the sampler gave it."""
    given, calls = {}, []
    generate = Run.generate

    def told(run: Run, requests: list[Any], sampling: Any) -> list[Any]:
        found = generate(run, requests, sampling)
        if sampling.role == "policy":
            given.update({key(ask.prompt_ids, each.token_ids): each for ask, each in zip(requests, found, strict=True)})
        return found

    with mock.patch.object(Run, "generate", told):
        run, rows = sampled(subject)
    known = [given.get(key(row.get("prompt_ids", ()), row.get("completion_ids", ()))) for row in rows]
    if not any(known):
        raise DoesNotApply("its rows aren't completions that the policy has sampled")
    handle = run.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args[0], kwargs.get("temperature", 1.0))), with_kwargs=True
    )
    try:
        [batch] = collated(run, [rows])
        run.totals = batch.counts
        run.loss(batch)
    finally:
        handle.remove()
    apart = [difference(run, batch, heat, known) for batch, heat in calls]
    found = [each for each in apart if each is not None]
    if not found:
        raise DoesNotApply("the loss never asks for the sampled tokens of each row, and nothing else")
    if min(found) > SAME:
        heats = ", ".join(f"{heat:g}" for _, heat in calls)
        raise NotMet(
            f"log-probs of sampled tokens differ from the sampler's by up to {min(found):.2g} nats before the first"
            f" update ({SAME:g} allowed); the run samples at temperature {heat_of(run):g}, and the loss asks at {heats}"
        )
    return {"apart": min(found), "rows": sum(each is not None for each in known)}


def key(prompt: Any, completion: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(prompt), tuple(completion)


def difference(run: Run, batch: Any, heat: float, known: list[Any]) -> float | None:
    """The largest of a token of rows whose completion the policy has sampled; None for a batch of other tokens."""
    import torch

    from ft_host.batch import by_row

    if batch.num_rows != len(known):
        return None
    values = by_row(run.policy(batch, want=("logp",), temperature=heat)["logp"].detach().cpu(), batch)
    pairs = [(mine, torch.tensor(each.logprobs)) for mine, each in zip(values, known, strict=True) if each is not None]
    if any(len(mine) != len(theirs) for mine, theirs in pairs):
        return None
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs if len(mine))


def heat_of(run: Run) -> float:
    return run.config.temperature  # type: ignore[attr-defined]


# ---------------------------------------------------------------- rollouts that don't wait


def three_steps(subject: Subject) -> RolloutConfig:
    return subject.config(max_steps=3, train_sampling_strategy="random", **TWICE)  # type: ignore[return-value]


def overlapped(subject: Subject) -> None:
    config = three_steps(subject)
    here, there = run_in(config, "sync"), run_in(config, "overlap", rollouts="overlap", max_staleness=0)
    compare(lines(here), lines(there), "with rollouts: overlap and max_staleness: 0", rel=0, abs=0)


def in_advance(subject: Subject) -> None:
    ahead.rollouts_ahead(three_steps(subject))


def apart(subject: Subject) -> None:
    ahead.same_as_sync(three_steps(subject), "async")


CHECKS: list[Check] = [
    Check(
        id="rollouts-seed",
        title="A rollout made twice with one seed has the same rows; another seed gives others",
        about="rollouts",
        why="Completions are the data of such a run: where they can't be made again, nothing can.",
        looks_at="The rows of a first rollout, after `ft_annotate`: made twice, column by column, and with another "
        "seed.",
        mend="Draw random numbers from torch's generator, which the host seeds, or from one made of `run.config.seed` "
        "and `rollout.number`.",
        test=seeded,
    ),
    Check(
        id="rollouts-rows",
        title="Rows of a rollout hold what the host needs, and come back from JSON as they were",
        about="rollouts",
        why="Checkpoints keep rows as JSON. One that comes back as something else makes a resumed run another one.",
        looks_at="The columns of each row of a first rollout: `group`, `length` and `shared` as whole numbers, and "
        "each value after a journey through JSON.",
        mend="Make rows with `completion_row` of ft_host.api, and give numbers, texts, lists and dicts with texts as "
        "keys: no tensors, tuples or numbers as keys.",
        test=kept,
    ),
    Check(
        id="rollouts-groups",
        title="A method whose loss compares the rows of a prompt asks for them whole; another says that it doesn't",
        about="rollouts",
        why="Micro-batches are cut by memory. A loss that compares rows then compares fewer, and says so nowhere.",
        looks_at="The loss of a step at once, and with the rows of each prompt spread over two micro-batches; where "
        "the method has `whole_groups = True`, in micro-batches of one prompt.",
        mend="Set `whole_groups = True` on the config class (or in the RolloutPlan) where the loss needs the rows of a "
        "prompt together, `False` where each row's loss stands by itself.",
        test=groups,
    ),
    Check(
        id="rollouts-logprobs",
        title="At the first step the loss sees the log-probs that the sampler gave",
        about="rollouts",
        why="The ratio of the two is 1 before the first update, whatever the method does with it. Where it isn't, each "
        "gradient is that of another policy: another temperature, or tokens that are one off.",
        looks_at="What the sampler gave the tokens of a first rollout, against the model called as `ft_loss` calls "
        "it: the same batch at the same temperature.",
        mend="Pass `temperature=run.config.temperature` to the model, and make labels of the sampled tokens alone, in "
        "order: `completion_batch` does.",
        test=logprobs,
    ),
    Check(
        id="rollouts-overlap",
        title="Rollouts that overlap with training give the synchronous run where no staleness is allowed",
        about="rollouts",
        why="`rollouts: overlap` is about speed. What it changes beside, nobody would look for.",
        looks_at="Three steps with `rollouts: sync` and with `overlap` and `max_staleness: 0`, bit for bit.",
        mend="Use of the rollout what it offers (`generate`, `reward`, `number`), and nothing that the module keeps "
        "from the last one.",
        test=overlapped,
    ),
    Check(
        id="rollouts-ahead",
        title="Rollouts that are one ahead learn from each prompt once, and can be replayed bit for bit",
        about="rollouts",
        tier="stable",
        why="Rollouts that don't wait call `ft_rollout` for each prompt by itself, in threads.",
        looks_at="Three steps with `rollouts: overlap`: the prompts taken, the age of the oldest token, and the same "
        "run replayed.",
        mend="Don't compare completions of different prompts in `ft_rollout`, and keep nothing in the module: what "
        "needs all rows of a rollout is made in `ft_annotate`.",
        test=in_advance,
    ),
    Check(
        id="rollouts-apart",
        title="Rollouts in a process of their own give the synchronous run where no staleness is allowed",
        about="rollouts",
        tier="stable",
        why="`rollouts: async` imports the method in another process, which has no model and none of the trainer's "
        "state.",
        looks_at="Three steps with `rollouts: sync` and with `async` and `max_staleness: 0`: metrics and weights, bit "
        "for bit.",
        mend="`ft_rollout` may use its arguments and the package's files: not what training has left in a module.",
        test=apart,
    ),
]
