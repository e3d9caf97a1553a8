"""The fields of every run that say how weights are updated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_host.config.options import SCHEDULES, option
from ft_host.config.usual import Usual


@dataclass(kw_only=True)
class OptimisationFields:
    """A part of `RunConfig`."""

    learning_rate: float = option(5e-5, "Peak learning rate.", group="optimisation", gt=0)
    lr_scheduler_type: str = option(
        "linear", "Schedule of the learning rate, by its name in transformers.", group="optimisation", choices=SCHEDULES
    )
    lr_scheduler_kwargs: dict[str, Any] = option({}, "Further arguments of the schedule.", group="optimisation")
    warmup_steps: float = option(
        0, "Steps in which the learning rate rises from 0; below 1, a share of all steps.", group="optimisation", ge=0
    )
    optim: str = option(
        "adamw",
        "Optimizer: adamw, sgd, adafactor (transformers', whose steps don't depend on the size of the weights), "
        "another of transformers' names (adamw_8bit, lion_8bit, schedule_free_adamw …), or the import path of a "
        "torch optimizer class of any package (package.module:Class).",
        group="optimisation",
    )
    optim_args: dict[str, Any] = option({}, "Further arguments of the optimizer.", group="optimisation")
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay, on matrices only (no norms, no biases).",
        group="optimisation",
        ge=0,
        usual=Usual(
            high=0.3,
            above=("no_learning", "forgetting", "divergence"),
            why="weights shrink by learning_rate times that at each step, whatever the rows say",
            source="AdamW, arXiv 1711.05101; 0 to 0.1 in fine-tuning",
        ),
    )
    adam_beta1: float = option(
        0.9,
        "AdamW's first decay rate.",
        group="optimisation",
        ge=0,
        le=1,
        usual=Usual(
            low=0.5,
            high=0.95,
            below=("divergence",),
            above=("no_learning", "divergence"),
            why="an update is a mean over 1 / (1 - adam_beta1) steps",
            source="Adam, arXiv 1412.6980: 0.9",
        ),
    )
    adam_beta2: float = option(
        0.999,
        "AdamW's second decay rate.",
        group="optimisation",
        ge=0,
        le=1,
        usual=Usual(
            low=0.9,
            high=0.9999,
            below=("divergence",),
            above=("no_learning", "divergence"),
            why="the size of gradients is a mean over 1 / (1 - adam_beta2) steps",
            source="Adam, arXiv 1412.6980: 0.999; 0.95 for large models",
        ),
    )
    adam_epsilon: float = option(
        1e-8,
        "AdamW's epsilon.",
        group="optimisation",
        gt=0,
        usual=Usual(
            far=10000.0,
            low=1e-16,
            high=1e-5,
            below=("divergence",),
            above=("no_learning",),
            why=("it rounds to nothing beside the gradients", "gradients smaller than it hardly move their weights"),
            source="Adam, arXiv 1412.6980: 1e-8; 1e-5 where policies are trained",
        ),
    )
    max_grad_norm: float = option(
        1.0,
        "Gradients are scaled down to this norm; 0: no clipping.",
        group="optimisation",
        ge=0,
        usual=Usual(
            far=10000.0,
            low=0.01,
            below=("no_learning",),
            off=(0.0,),
            why="gradients are scaled down to next to nothing, below adam_epsilon",
            source="0.1 to 1 in published recipes; axolotl docs/training_stability",
        ),
    )
    bf16: bool | None = option(
        None, "Do the maths in bfloat16. Not set: if the hardware supports it (never on a CPU).", group="optimisation"
    )
    fp16: bool = option(False, "Do the maths in float16, with loss scaling.", group="optimisation")
    seed: int = option(
        42,
        "Seed of the order of the rows, dropout, sampling, new weights, and of what plugins and rewards draw from "
        "`random` and `numpy.random`.",
        group="optimisation",
        ge=0,
        le=2**32 - 1,
    )
