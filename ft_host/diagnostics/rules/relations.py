"""Settings that don't go with each other or with the run's length; and the rule that notes what is unusual. Imports no
torch.

Each function yields the suspects of one relation; its first line is what docs/ranges.md says of it. Ranges of single
fields stand with the fields (`option(..., usual=...)`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ft_host.diagnostics.rule import Rule
from ft_host.diagnostics.rules.relations_loaded import (
    balance_of_experts,
    lora_scale,
    model_settings,
    reuse_of_rollouts,
    weights_of_rewards,
)
from ft_host.diagnostics.rules.relations_optimizer import (
    clipping_of_sgd,
    kind_of_rate,
    optimizer_arguments,
    rate,
    rounding,
)
from ft_host.diagnostics.suspects import FACT, NOTES, Function, Suspect
from ft_host.diagnostics.view import View, percent, short

OWN = "own judgement"
WARMUP = 0.05


def total_steps(view: View) -> int | None:
    """The steps of the run, also before its data is known, where the config says."""
    return view.total_steps or (view.config.max_steps if view.config.max_steps > 0 else None)


def has(view: View, name: str) -> bool:
    return name in vars(view.config)


# ---------------------------------------------------------------- the schedule


def warm_up(view: View) -> Iterator[Suspect]:
    """warmup_steps: at most half of the run's steps; 3 to 10 % is usual (arXiv 1706.02677; transformers' examples)."""
    steps, total = view.config.warmup_steps, total_steps(view)
    if total is None or total < 2 or view.config.lr_scheduler_type == "constant":
        return
    count = math.ceil(steps * total) if steps < 1 else steps
    if count <= total / 2 or count <= 2:
        return
    reached = min(1.0, (total - 1) / count)
    yield Suspect(
        field="warmup_steps",
        value=steps,
        usual="3 to 10 % of the steps",
        explains=("no_learning",),
        source="arXiv 1706.02677; transformers' examples",
        new=WARMUP,
        said=(
            f"warmup_steps {short(steps)} is a warm-up of {short(count)} steps in a run of {total}: learning_rate"
            f" reaches {percent(reached)} of {short(view.config.learning_rate)} (usual: a warm-up of 3 to 10 %)"
        ),
        why="most updates are made at a fraction of the learning rate",
        remedy=f"Set warmup_steps from {short(steps)} to {short(WARMUP)}, a twentieth of all steps",
        certain=count >= total,
        distance=math.log10(count / (0.1 * total)),
    )


def schedule(view: View) -> Iterator[Suspect]:
    """lr_scheduler_type, lr_scheduler_kwargs: the rate is above a hundredth of its peak in half of the steps, and never
    above learning_rate (own judgement)."""
    idle, most = view.get("plan/rate_idle_share", 0.0), view.get("plan/rate_most", 1.0)
    config, total = view.config, total_steps(view)
    if total is None or total < 10 or (idle <= 0.5 and most <= 1.5):
        return
    if any(suspect.certain for suspect in warm_up(view)):
        return
    arguments, kind = config.lr_scheduler_kwargs, config.lr_scheduler_type
    needs_some = kind in ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
    patch: dict[str, Any] = {"lr_scheduler_kwargs": {}}
    if needs_some or not arguments:
        patch["lr_scheduler_type"] = "linear"
    named = f"lr_scheduler_type {kind}" + (f" with lr_scheduler_kwargs {arguments}" if arguments else "")
    what = (
        f"is next to 0 in {percent(idle)} of the steps" if idle > 0.5 else f"rises to {short(most)} times learning_rate"
    )
    yield Suspect(
        field="lr_scheduler_kwargs" if arguments else "lr_scheduler_type",
        value=arguments or kind,
        usual="next to 0 in fewer than half of the steps, and never above learning_rate",
        explains=("no_learning",) if idle > 0.5 else ("divergence", "forgetting"),
        source=OWN,
        patch=patch,
        said=f"with {named} the learning rate {what}",
        why="a step at a rate of 0 changes nothing" if idle > 0.5 else "updates are as much larger",
        remedy="Set lr_scheduler_type to linear, without lr_scheduler_kwargs"
        if len(patch) > 1
        else f"Leave lr_scheduler_kwargs out: {kind} has its own",
        certain=True,
        distance=1.0,
    )


# ---------------------------------------------------------------- intervals


def intervals(view: View) -> Iterator[Suspect]:
    """eval_steps, logging_steps, save_steps, ref_model_sync_steps, teacher_sync_steps: at most the steps of the run."""
    total, config = total_steps(view), vars(view.config)
    if total is None or total < 20:
        return
    on = {
        "eval_steps": True,
        "logging_steps": True,
        "save_steps": total >= 1000,  # a short run has its checkpoint at the end
        "ref_model_sync_steps": config.get("sync_ref_model", False),
        "teacher_sync_steps": config.get("teacher_model_kind") == "ema",
    }
    for name, matters in on.items():
        every = config.get(name)
        # a little beyond the end is a default, or a run that was cut to a few steps
        least = {"eval_steps": 1, "logging_steps": 10}.get(name, 2)
        if not matters or every is None or every <= least * total:
            continue
        yield Suspect(
            field=name,
            value=every,
            usual="at most the steps of the run",
            explains=(),
            source=OWN,
            new=max(1, total // 10),
            said=f"{name} is {every}, and the run has {total} steps",
            why="it doesn't happen once between the beginning and the end",
            certain=name == "eval_steps" and every >= 2 * total,
            distance=math.log10(every / total),
        )


# ---------------------------------------------------------------- lengths


def positions(view: View) -> Iterator[Suspect]:
    """max_completion_length, max_length: within the positions that the model was trained for (its config.json)."""
    most, longest = view.get("model/trained_positions"), view.get("data/length_max")
    limit, config = view.get("model/row_limit"), view.config
    if has(view, "reward") and limit is not None and limit <= 0:
        positions_in_all = limit + config.max_completion_length
        yield Suspect(
            field="max_completion_length",
            value=config.max_completion_length,
            usual=f"less than the model's {positions_in_all} positions",
            explains=("divergence", "forgetting", "cut"),
            source="the model's config.json",
            new=max(1, positions_in_all // 2),
            certain=True,
        )
    elif most is not None and longest is not None and config.max_length is not None and not has(view, "reward"):
        if min(longest, config.max_length) > most:
            yield Suspect(
                field="max_length",
                value=config.max_length,
                usual=f"at most the model's {most} positions",
                explains=("bad_start", "divergence"),
                source="the model's config.json",
                new=most,
            )


SUSPECTS: list[Function] = [
    warm_up,
    schedule,
    kind_of_rate,
    clipping_of_sgd,
    rate,
    optimizer_arguments,
    rounding,
    lora_scale,
    model_settings,
    balance_of_experts,
    intervals,
    positions,
    reuse_of_rollouts,
    weights_of_rewards,
]

# ---------------------------------------------------------------- the note


def noted(view: View) -> Suspect | None:
    return next((each for each in view.suspects if each.field == view.cause and each.noted), None)


def note(view: View) -> str:
    suspect = noted(view)
    return f"{suspect.clause}{f': {suspect.why}' if suspect.why else ''}."


RULES = [
    Rule(
        code=NOTES,
        title="A setting is unusual",
        stage="before",
        level="settings",
        needs=(f"{FACT}*",),
        severity="info",
        test=lambda view: noted(view) is not None,
        notable=lambda view: noted(view).certain,
        message=note,
        remedies=lambda view: [noted(view).as_remedy()],
        when=(
            "A number is beyond the range of its field, or doesn't go with another field, with the number of steps, or"
            " with what the model's own config has; docs/ranges.md lists all of them, with sources. A warning where it"
            " can't be meant, such as a warm-up that is longer than the run."
        ),
        why=(
            "What lies outside of what others train with is perhaps intended. Where the run then suffers from what it"
            " explains, it is the first thing to change: the finding says so."
        ),
        remedy="Set the field to something usual, unless the value is intended.",
        source="docs/ranges.md, by field",
    )
]
