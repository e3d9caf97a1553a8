"""The fields of online DPO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import GroupedRolloutConfig, ReferenceConfig, Usual, option

LOSS_TYPES = ("sigmoid", "ipo")  # the keys of ft_online_dpo.method.LOSSES


@dataclass(kw_only=True)
class OnlineDPOConfig(GroupedRolloutConfig, ReferenceConfig):
    """Online direct preference optimization: sample completions of a prompt, and prefer the one that earns the most to
    the one that earns the least.
    """

    rows_per_prompt: ClassVar[int | None] = 1  # a row is a pair
    whole_groups: ClassVar[bool | None] = False

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    metrics: ClassVar[tuple[str, ...]] = (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "pairs/reward_margin",
        "pairs/kept_share",
        "kl",
        "entropy",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    # Rewards of a side move with the other's: margins and accuracies tell what is better.
    metric_directions: ClassVar[dict[str, str]] = {"rewards/chosen": "neither", "rewards/rejected": "neither"}
    trl_names: ClassVar[tuple[str, ...]] = ("online_dpo", "onlinedpo", "dpo_online")
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "temperature": (0.9, "what is sampled is what is compared"),
        "max_completion_length": (64, "few answers fit 64 tokens"),
        "max_length": (512, "TRL cuts the beginning of prompts to it; here longer prompts are left out"),
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "judge": "not offered; a function that compares texts is a reward: 1 for the better one"
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that policy and reference differ only by training.",
        group="model",
    )
    learning_rate: float = option(
        5e-7, "Peak learning rate. 5e-7 is usual for all weights; about 10 times that for LoRA.", gt=0
    )
    num_generations: int = option(
        2,
        "Completions of a prompt: the one with the highest and the one with the lowest reward are its pair. More make "
        "pairs that differ more, and cost more to sample.",
        group="rollouts",
        gt=1,
    )
    max_completion_length: int = option(
        512,
        "Longest completion in tokens; with tools, of all its turns.",
        group="generation",
        gt=0,
        aliases=("max_new_tokens",),
    )
    missing_eos_penalty: float | None = option(
        None,
        "Subtracted from the reward of a completion that was cut short by max_completion_length, before completions "
        "are compared.",
        group="rollouts",
        gt=0,
        usual=Usual(
            high=10,
            above=("no_learning", "forgetting"),
            why="not being cut is worth more than being right",
            source="TRL's examples: 1",
            new=1.0,
        ),
    )
    loss_type: str = option(
        "sigmoid",
        "The loss of the difference of log-ratios, sums over completions: sigmoid is DPO's, ipo brings it to "
        "1 / (2 beta).",
        choices=LOSS_TYPES,
    )
    beta: float = option(
        0.1,
        "How strongly the policy is tied to the reference: larger stays closer. For ipo it is tau.",
        gt=0,
        usual=Usual(
            low=0.005,
            high=1,
            below=("divergence", "forgetting", "no_learning"),
            above=("saturation", "divergence", "no_learning"),
            why=("nothing holds the policy to the reference", "a pair is settled by a single update"),
            source="OAIF, arXiv 2402.04792: 0.1",
            new=0.1,
        ),
    )
