"""The fields of RLOO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import ConfigError, GroupedRolloutConfig, ReferenceConfig, Usual, option

# Fields that need another one to be set, with their defaults.
CLIPPED = {"epsilon": 0.2, "epsilon_high": None}


@dataclass(kw_only=True)
class RLOOConfig(GroupedRolloutConfig, ReferenceConfig):
    """REINFORCE, leave one out: raise the likelihood of completions with more reward than the mean of their prompt's
    others.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "kl",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_max",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    whole_groups: ClassVar[bool | None] = False  # a completion's loss needs no other: advantages are made before

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "disable_dropout": (False, "the policy that learns is the one that sampled"),
        "max_length": (None, "longer prompts are left out; it is of prompts alone"),
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the ratio of new and old policy is 1 before the first update.",
        group="model",
    )
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 is usual for all weights: the signal is noisy, and the model already has its "
        "skills. About 10 times that for LoRA.",
        gt=0,
    )

    # -- rollouts
    num_generations: int = option(
        2,
        "Completions of a prompt, each compared with the others; at least 2. The paper has 2 and 4: more make a "
        "better baseline, fewer leave room for more prompts.",
        group="rollouts",
        gt=1,
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave completions that were cut short by max_completion_length out of the loss and its denominator. "
        "Their rewards are still compared with those of others.",
        group="rollouts",
    )

    # -- rewards
    reward_clip_range: list[float] | None = option(
        None, "Bounds of a completion's summed rewards, before the KL penalty. Not set: no bounds."
    )
    beta: float = option(
        0.05,
        "Weight of the KL divergence from the reference, which is subtracted from the reward of a completion, "
        "summed over its tokens: it matters more for longer completions. 0: no reference is held.",
        ge=0,
        usual=Usual(
            high=0.5,
            above=("no_learning",),
            why="staying near the reference outweighs the reward",
            source="RLOO, arXiv 2402.14740: 0.03 to 0.1, of the sum over a completion",
        ),
    )
    normalize_advantages: bool = option(
        False,
        "Shift and scale the advantages of a rollout to a mean of 0 and a standard deviation of 1, so that the size of"
        " the rewards doesn't matter.",
    )

    # -- the loss
    epsilon: float = option(
        0.2,
        "Nothing is gained below a ratio of new and old policy of 1 - this, of a whole completion. Counts from the"
        " second update of a rollout on.",
        gt=0,
        le=1,
        usual=Usual(
            low=0.02,
            high=1,
            below=("no_learning",),
            above=("divergence",),
            why=("nearly every update is clipped away", "nothing holds the policy to what sampled"),
            source="PPO, arXiv 1707.06347: 0.1 to 0.3",
        ),
    )
    epsilon_high: float | None = option(
        None,
        "Nothing is gained above a ratio of 1 + this. Not set: epsilon.",
        gt=0,
        usual=Usual(
            low=0.02,
            high=1,
            below=("no_learning",),
            above=("divergence",),
            why=("nearly every update is clipped away", "nothing holds the policy to what sampled"),
            source="PPO, arXiv 1707.06347: 0.1 to 0.3",
        ),
    )

    @property
    def clip_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of new and old policy that pays."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def no_reference(self) -> str | None:
        return None if self.beta else "with beta: 0, which holds no reference"

    def check(self) -> None:
        super().check()
        if self.reward_clip_range is not None:
            if len(self.reward_clip_range) != 2 or self.reward_clip_range[0] >= self.reward_clip_range[1]:
                raise ConfigError(
                    f"reward_clip_range: found {self.reward_clip_range}, expected two numbers, the smaller one first"
                )
        if self.rollout_plan(self.num_processes).updates == 1:
            self.refuse(
                CLIPPED,
                "where each rollout is used for one optimizer step, in which the ratio of new and old policy is 1;"
                " raise num_iterations or steps_per_generation, or leave it out",
            )
