"""Whole runs: what must not change their numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config import RolloutConfig, RunConfig
from ft_host.errors import ConfigError
from ft_host.testing import invariants
from ft_host.testing.conformance.check import Check, Figures, NotMet
from ft_host.testing.conformance.numbers import ABS, REL, Line, compare
from ft_host.testing.invariants import fixed_completions_of, lines, run_in
from ft_host.testing.rows import write_rows

if TYPE_CHECKING:
    from ft_host.testing.conformance.subject import Subject

SHORT: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 8}
# micro-batch × accumulation of a step of eight rows
SPLITS = {"2 micro-batches of 4 rows": (4, 2), "8 micro-batches of 1 row": (1, 8)}
BUDGET = 64  # tokens


def whole(subject: Subject) -> tuple[RunConfig, Path]:
    """A run of six steps with checkpoints after three and six, the second of them in the middle of a rollout, that
    several checks compare others with."""

    def make() -> tuple[RunConfig, Path]:
        fields: dict[str, Any] = {"max_steps": 6, "save_steps": 3, "save_total_limit": None, "seed": 1}
        fields["train_sampling_strategy"] = "random"
        config = subject.config(**fields)
        if "steps_per_generation" in {field.name for field in dataclasses.fields(config)}:
            with contextlib.suppress(ConfigError):  # a method may learn once from a rollout
                config = subject.config(**fields, steps_per_generation=2)
        return config, run_in(config, "whole")

    return subject.once("whole run", make)


# ---------------------------------------------------------------- what must not change the numbers


def split(subject: Subject) -> Figures:
    with fixed_completions_of(subject.config(**SHORT)) as config:
        expected = lines(run_in(config, "one", gradient_accumulation_steps=1))
        least = least_rows(config)
        found = {
            how: {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
            for how, (size, count) in SPLITS.items()
            if size >= least
        }
        found[f"micro-batches of {BUDGET} tokens"] = {"max_tokens_per_micro_batch": BUDGET}
        worst = [compare(expected, lines(run_in(config, how, **fields)), how) for how, fields in found.items()]
    return {"apart": max(worst)}


def least_rows(config: RunConfig) -> int:
    """Rows that a micro-batch must hold: those of a prompt, where the method asks for whole groups."""
    if not isinstance(config, RolloutConfig):
        return 1
    plan = config.rollout_plan(1)
    return plan.rows_per_prompt if plan.whole_groups else 1


def seeded(subject: Subject) -> None:
    config, folder = whole(subject)
    first = lines(folder)
    again = lines(run_in(config, "again"))
    compare(first, again, "the same run a second time", rel=0, abs=0)
    other = lines(run_in(config, "another seed", seed=2))
    if [numbers(line) for line in first] == [numbers(line) for line in other]:
        raise NotMet("seed 1 and seed 2 give the same run, though its rows are drawn at random")


def numbers(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in ("step", "epoch", "learning_rate")}


def resumed(subject: Subject) -> Figures:
    config, folder = whole(subject)
    copy = subject.folder / "resumed"
    step = invariants.as_if_killed(folder, copy)
    invariants.resume_in(dataclasses.replace(config, output_dir=str(copy)), copy)
    how = f"resumed after step {step}"
    compare(lines(folder), lines(copy), how, rel=0, abs=0)
    same_weights(folder, copy, how)
    return {"resumed_after": step}


def same_weights(expected: Path, found: Path, how: str) -> None:
    try:
        invariants.assert_same_weights(expected, found, rel=0)
    except AssertionError as error:
        raise NotMet(f"{how}: the weights at the end are others: {error}") from error


def evaluated(subject: Subject) -> Figures:
    config, folder = whole(subject)
    held_out = write_rows(subject.folder / "held-out.jsonl", subject.rows(count=29)[24:])
    fields: dict[str, Any] = {"eval_dataset": str(held_out), "eval_steps": 3, "eval_on_start": True}
    by_five = run_in(config, "evaluated", **fields, per_device_eval_batch_size=5)
    compare(lines(folder), lines(by_five), "evaluated meanwhile", rel=0, abs=0)
    found = lines(by_five, "eval")
    if [line["step"] for line in found] != [0, 3, 6]:
        raise NotMet(f"evaluations at steps 0, 3 and 6 were asked for; logged at {[line['step'] for line in found]}")
    wrong = [(line["step"], name) for line in found for name, value in line.items() if value != value]
    if wrong:
        step, name = wrong[0]
        raise NotMet(f"the evaluation at step {step} logs {name} as NaN")
    by_two = lines(run_in(config, "evaluated by two", **fields, per_device_eval_batch_size=2), "eval")
    return {"apart": compare(found, by_two, "evaluated in batches of 2 instead of 5")}


def lora(subject: Subject) -> Figures:
    """What is new in an adapter multiplies by 0: losses are those of the model."""
    held_out = write_rows(subject.folder / "held-out.jsonl", subject.rows(count=29)[24:])
    fields: dict[str, Any] = {"max_steps": 1, "eval_dataset": str(held_out), "eval_on_start": True}
    with fixed_completions_of(subject.config(**fields)) as config:
        full, adapter = run_in(config, "full"), run_in(config, "lora", use_peft=True)
    learns = lines(adapter)[0]["grad_norm"]
    if not learns > 0:
        raise NotMet(f"the gradient of the adapter has the norm {learns}: nothing would be learnt")
    one, other = ([{"step": 1, "loss": lines(folder)[0]["loss"]}] for folder in (full, adapter))
    worst = compare(one, other, "with a new adapter", rel=1e-5)
    one, other = ([line for line in lines(folder, "eval") if line["step"] == 0] for folder in (full, adapter))
    return {"apart": max(worst, compare(one, other, "with a new adapter, on held-out rows"))}


# ---------------------------------------------------------------- several processes, one that is killed


def two_processes(subject: Subject, strategy: str) -> None:
    with fixed_completions_of(subject.config(**SHORT)) as config:
        invariants.process_count(
            dataclasses.replace(config, save_steps=2), rel=REL, abs=ABS, distributed_strategy=strategy
        )


def ddp(subject: Subject) -> None:
    two_processes(subject, "ddp")


def fsdp2(subject: Subject) -> None:
    two_processes(subject, "fsdp2")


def killed(subject: Subject) -> None:
    invariants.resume(subject.config(max_steps=6, save_steps=2, train_sampling_strategy="random"))


CHECKS: list[Check] = [
    Check(
        id="runs-split",
        title="A step's numbers are the same however its rows are split into micro-batches",
        about="method",
        why="How rows are split is about memory. Where it changes the loss, a run on a smaller GPU, or with a longer "
        "row in it, learns something else.",
        looks_at="Three steps of eight rows: at once, as two micro-batches of four, as eight of one, and by a budget "
        f"of {BUDGET} tokens. Loss, gradient norm and metrics must agree to {REL:.0e} of their size. Micro-batches "
        "that can't hold the rows of a prompt are left out where the method asks for whole groups. Rollouts are of "
        "completions that don't depend on the weights.",
        mend="Divide sums by the counts of the whole step: return `terms`, or divide by `run.totals`. What needs all "
        "rows of a step at once is made in `ft_step`; rows of a prompt that are compared with each other need "
        "`whole_groups = True`.",
        test=split,
    ),
    Check(
        id="runs-seed",
        title="The same seed gives the same run, bit for bit, and another seed another one",
        about="method",
        why="A run that can't be repeated can't be compared with another, nor can its faults be found.",
        looks_at="Six steps with one seed, twice, and with another seed.",
        mend="Draw random numbers from torch's generator, which the host seeds, or from one made of `run.config.seed`, "
        "`run.step` and what the row says. Keep nothing between runs in a module. Don't set the seed yourself.",
        test=seeded,
    ),
    Check(
        id="runs-resume",
        title="A run that is resumed from a checkpoint logs the numbers of one that was never interrupted",
        about="method",
        why="Machines fail and jobs have time limits. A run that goes on differently is another experiment.",
        looks_at="A run of six steps; its checkpoint after step 3, where it can in the middle of a rollout, resumed: "
        "metrics and weights, bit for bit.",
        mend="Keep what must outlive a restart in `run.state`, as numbers, texts, lists and dicts: not in a module, "
        "nor on the model. Companions that are trained are saved by the host.",
        test=resumed,
    ),
    Check(
        id="runs-evaluation",
        title="An evaluation changes nothing of the training, and doesn't depend on its batches",
        about="method",
        why="Evaluating more often must not give another model, nor a larger evaluation batch another score.",
        looks_at="The run of six steps without evaluation and with one every three steps, bit for bit; evaluations in "
        "batches of five and of two rows.",
        mend="`ft_loss` is called in evaluation too: it may not count calls, change `run.state` where "
        "`run.model.training` is False, or divide by counts of the batch.",
        test=evaluated,
    ),
    Check(
        id="runs-lora",
        title="A new adapter has the losses of the model without it, and a gradient",
        about="method",
        why="An adapter begins as nothing. Where the loss differs, the method reads weights or a reference in a way "
        "that an adapter breaks.",
        looks_at="Loss of the first step, evaluation before it, and gradient norm, with and without `use_peft`.",
        mend="Call the model through `ft_loss`'s argument, ask for the plain policy with `ModelSpec()`, and don't sum "
        "over `model.parameters()`.",
        test=lora,
    ),
    Check(
        id="runs-processes",
        title="Two processes learn what one does",
        about="method",
        tier="stable",
        why="More GPUs are for speed. A statistic of one rank's rows alone makes another method of it.",
        looks_at="Three steps of eight rows in one process and, with DDP, in two of four rows each: metrics, weights, "
        "and each rank's gradient at each step; then the checkpoint of one resumed by the other, both ways.",
        mend="Make statistics over all rows with `run.gather` or `run.over_ranks`, in `ft_annotate` or `ft_step`, and "
        "divide by `run.totals`. Each rank must call the model, and other ranks, equally often.",
        test=ddp,
    ),
    Check(
        id="runs-fsdp2",
        title="Two processes with sharded weights learn what one does",
        about="method",
        tier="stable",
        why="Models that don't fit one GPU are trained like this.",
        looks_at="As `runs-processes`, with `distributed_strategy: fsdp2`.",
        mend="Call the model as `ft_loss` gets it, once for each batch on each rank, the empty one too, and read no "
        "weights of it: a rank has a shard of each.",
        test=fsdp2,
    ),
    Check(
        id="runs-killed",
        title="A run that is killed and resumed by another process logs the numbers of one that never was",
        about="method",
        tier="stable",
        why="What a module keeps outlives a run in the same process, and is gone in another.",
        looks_at="Six steps; a second run that dies by SIGKILL after its first checkpoint, resumed by a process of its "
        "own: metrics and weights, bit for bit.",
        mend="As for `runs-resume`: keep it in `run.state`.",
        test=killed,
    ),
]
