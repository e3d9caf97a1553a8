"""The fields of every run with rollouts that say how completions are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ft_host.config.options import option
from ft_host.config.usual import Usual


@dataclass(kw_only=True)
class SamplingFields:
    """A part of `RolloutConfig`."""

    max_length: int | None = option(
        1024,
        "Longest prompt in tokens; rows over it are left out. none: no limit.",
        group="rollouts",
        gt=1,
        aliases=("max_prompt_length",),
    )
    max_completion_length: int = option(
        512, "Longest completion in tokens; with tools, of all its turns.", group="generation", gt=0
    )
    temperature: float = option(
        1.0,
        "Temperature of sampling, and of the policy in the loss.",
        group="rollouts",
        gt=0,
        usual=Usual(
            far=4,
            low=0.3,
            high=1.5,
            below=("no_variety", "no_signal"),
            above=("divergence", "forgetting", "cut", "no_learning"),
            why=("all completions are the likeliest one", "completions are made of unlikely tokens"),
            source="0.6 to 1.2 in published recipes of RL on language models",
        ),
    )
    top_p: float = option(
        1.0,
        "Sample from the likeliest tokens that hold this much probability.",
        group="rollouts",
        gt=0,
        le=1,
        usual=Usual(
            low=0.7,
            below=("no_variety", "no_signal"),
            why="the policy is trained on less than it may say",
            source="0.9 to 1 in published recipes",
        ),
    )
    top_k: int = option(
        0,
        "Sample from the k likeliest tokens; 0: from all.",
        group="rollouts",
        ge=0,
        usual=Usual(
            far=5,
            low=5,
            below=("no_variety", "no_signal"),
            why="a handful of tokens is left to choose from",
            source="20 to 100 in published recipes",
            off=(0,),
        ),
    )
    min_p: float = option(
        0.0,
        "Sample from tokens that are at least this share as likely as the likeliest; in evaluation too.",
        group="rollouts",
        also={None: 0.0},
        ge=0,
        le=1,
        usual=Usual(
            high=0.3,
            above=("no_variety", "no_signal"),
            why="only tokens nearly as likely as the likeliest are left",
            source="arXiv 2407.01082: 0.05 to 0.1",
        ),
    )
    repetition_penalty: float = option(
        1.0,
        "Above 1: tokens that are already in the text become less likely; in evaluation too.",
        group="rollouts",
        gt=0,
        usual=Usual(
            low=0.8,
            high=1.3,
            below=("no_variety",),
            above=("divergence", "forgetting", "no_learning"),
            why="what is sampled is no longer what the policy would say",
            source="CTRL, arXiv 1909.05858: 1.2",
        ),
    )
    chat_template_kwargs: dict[str, Any] = option(
        {}, "Arguments of the chat template for every prompt; a row's own come first.", group="rollouts"
    )
