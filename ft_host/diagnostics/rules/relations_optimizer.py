"""Relations between the optimizer, its rate and its arguments, as `relations` has those of every run. Imports no
torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ft_host.diagnostics.rules.settings import LARGE
from ft_host.diagnostics.suspects import Suspect, shown
from ft_host.diagnostics.view import View, short

OWN = "own judgement"


def has(view: View, name: str) -> bool:
    return name in vars(view.config)


ADAM_KIND = ("adam", "ademamix", "lion", "adafactor", "adan", "sophia")


def is_adam_kind(name: str) -> bool:
    """Whether the size of an update is the rate, whatever that of the gradient."""
    return any(part in name.lower() for part in ADAM_KIND)


def kind_of_rate(view: View) -> Iterator[Suspect]:
    """optim: sgd with a learning_rate of 1e-3 or more; its updates are as small as gradients are (own judgement)."""
    config = view.config
    if config.optim != "sgd" or config.learning_rate >= 1e-3:
        return
    yield Suspect(
        field="optim",
        value="sgd",
        usual="a rate of 1e-3 or more",
        explains=("no_learning",),
        source=OWN,
        new="adamw",
        said=f"optim is sgd, at a learning_rate of {short(config.learning_rate)} (usual for sgd: at least 1e-3)",
        why="updates of sgd are the gradient times the rate, those of adamw have the size of the rate",
        remedy="Set optim to adamw, from sgd: the learning rate is one for optimizers of Adam's kind",
        distance=math.log10(1e-3 / config.learning_rate),
    )


def rate_bounds(view: View) -> tuple[float, float, float]:
    """The lowest and the highest learning rate that is usual, and one in between."""
    large = view.get("model/parameters", 0) >= LARGE
    careful = has(view, "beta") or has(view, "reward")  # learns from preferences or rewards, or from a teacher
    if view.config.use_peft:
        return (1e-6, 1e-2, 1e-4) if careful else (1e-5, 2e-2, 2e-4)
    if large:
        return (1e-8, 3e-4, 1e-6) if careful else (5e-7, 1e-3, 2e-5)
    return (1e-8, 3e-2, 1e-4) if careful else (1e-6, 5e-2, 1e-3)


def rate(view: View) -> Iterator[Suspect]:
    """learning_rate, of Adam's kind: 5e-7 to 1e-3 (LoRA: 1e-5 to 2e-2; preferences, rewards and teachers: from 1e-8,
    LoRA from 1e-6); models below 100 M parameters bear 5e-2 (axolotl docs; TRL LoRA without regret; own judgement)."""
    now = view.config.learning_rate
    low, high, new = rate_bounds(view)
    if not is_adam_kind(view.config.optim) or low <= now <= high:
        return
    yield Suspect(
        field="learning_rate",
        value=now,
        usual=f"{short(low)} to {short(high)}",
        explains=("no_learning",) if now < low else ("divergence", "forgetting"),
        source="axolotl docs/training_stability; TRL LoRA without regret",
        new=new,
        why="an update changes each weight by about the rate",
        noted=view.get("model/parameters", 0) < LARGE,  # CFG001 and CFG002 are about larger ones
        distance=abs(math.log10(now / (low if now < low else high))),
    )


def clipping_of_sgd(view: View) -> Iterator[Suspect]:
    """max_grad_norm with sgd: at least 0.1; an update is no larger than learning_rate times that (own judgement)."""
    config = view.config
    if config.optim != "sgd" or not 0 < config.max_grad_norm < 0.1:
        return
    yield Suspect(
        field="max_grad_norm",
        value=config.max_grad_norm,
        usual="at least 0.1 with sgd",
        explains=("no_learning",),
        source=OWN,
        new=1.0,
        why="an update of sgd is no larger than learning_rate times that",
        distance=math.log10(0.1 / config.max_grad_norm),
    )


ARGUMENTS: dict[str, tuple[float, float, str]] = {
    "momentum": (0.0, 0.98, "divergence"),
    "eps": (0.0, 1e-3, "no_learning"),
    "betas": (0.0, 0.9999, "no_learning"),
    "weight_decay": (0.0, 0.5, "no_learning"),
}


def optimizer_arguments(view: View) -> Iterator[Suspect]:
    """optim_args: momentum at most 0.98, eps 1e-3, betas 0.9999, weight_decay 0.5 (torch's documentation; own
    judgement)."""
    given = view.config.optim_args
    for name, (low, high, symptom) in ARGUMENTS.items():
        values = given.get(name, [])
        numbers = [each for each in (values if isinstance(values, list | tuple) else [values]) if is_number(each)]
        if all(low <= each <= high for each in numbers):
            continue
        yield Suspect(
            field="optim_args",
            value=given,
            usual=f"{name} at most {short(high)}",
            explains=(symptom,),
            source="torch's documentation; own judgement",
            new={key: value for key, value in given.items() if key != name},
            said=f"optim_args has {name} {shown(values)} (usual: at most {short(high)})",
            remedy=f"Leave {name} out of optim_args: {view.config.optim} has its own",
            distance=1.0,
        )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def rounding(view: View) -> Iterator[Suspect]:
    """dtype: float32, or a learning_rate of 1e-4 or more, unless an adapter is trained: an update below half the
    distance to the next number is lost (the format of bfloat16)."""
    config = view.config
    if config.dtype not in ("bfloat16", "float16") or config.use_peft or config.learning_rate >= 1e-4:
        return
    yield Suspect(
        field="dtype",
        value=config.dtype,
        usual="float32 where learning_rate is below 1e-4",
        explains=("no_learning",),
        source="the format of bfloat16",
        new="float32",
        said=(
            f"weights are held in {config.dtype}, where updates at a learning_rate of {short(config.learning_rate)}"
            " round away"
        ),
        remedy=f"Set dtype to float32, from {config.dtype}; the maths still runs in bfloat16 with bf16",
        noted=False,  # OPT013 says it
        distance=0.5,
    )
