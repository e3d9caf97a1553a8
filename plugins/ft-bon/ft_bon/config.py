"""The fields of best of n. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, GroupedRolloutConfig, RolloutPlan, grouped_plan, option


@dataclass(kw_only=True)
class BestOfNConfig(GroupedRolloutConfig):
    """Best of n (rejection sampling, RAFT): sample completions of a prompt, and fine-tune on those that earn the
    most.
    """

    whole_groups: ClassVar[bool | None] = False  # which completions are learnt from is known before

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    metrics: ClassVar[tuple[str, ...]] = (
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "best/reward",
        "best/gain",
        "best/kept_share",
        "entropy",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
    )
    elsewhere: ClassVar[dict[str, str]] = {
        "beta": "not offered; nothing but the learning rate and the number of steps holds the policy",
        "ref_model": "not needed; completions are compared with each other, and there is no reference",
        "n": "here it is num_generations",
        "top_n": "here it is num_kept",
        "reward_threshold": "here it is min_reward",
    }

    learning_rate: float = option(
        1e-6, "Peak learning rate. 1e-6 is usual for all weights; about 10 times that for LoRA.", gt=0
    )
    num_generations: int = option(
        8, "Completions of a prompt, of which the best are learnt from.", group="rollouts", gt=1
    )
    num_kept: int = option(
        1,
        "The completions of a prompt that are learnt from: those with the highest rewards, the first of equals. Rows "
        "of micro-batches are of these.",
        group="rollouts",
        gt=0,
    )
    min_reward: float | None = option(
        None,
        "Learn from no completion with a reward below this (rejection sampling): what is best of a prompt may be bad "
        "all the same. Not set: whatever is best.",
        group="rollouts",
    )
    keep_equal: bool = option(
        False,
        "Learn also from a prompt whose completions all earn the same: from the first of them. By default it is left "
        "out, as none of them is the best.",
        group="rollouts",
    )

    def rollout_plan(self, processes: int) -> RolloutPlan:
        return grouped_plan(
            self,
            processes,
            num_generations=self.num_generations,
            steps_per_generation=self.steps_per_generation,
            generation_batch_size=self.generation_batch_size,
            num_iterations=self.num_iterations,
            rows_per_prompt=self.num_kept,
            whole_groups=self.whole_groups,
        )

    def check(self) -> None:
        if self.num_kept >= self.num_generations:
            raise ConfigError(
                f"num_kept: {self.num_kept} of {self.num_generations} completions (num_generations) rejects none; "
                f"expected at most {self.num_generations - 1}"
            )
        super().check()
