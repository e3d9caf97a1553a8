"""The fields of RLOO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, RolloutConfig, RolloutPlan, grouped_plan, option, place_problems

# Fields that need another one to be set, with their defaults.
REFERENCED = {"ref_model": None, "sync_ref_model": False}
SYNCED = {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}
CLIPPED = {"epsilon": 0.2, "epsilon_high": None}


@dataclass(kw_only=True)
class RLOOConfig(RolloutConfig):
    """REINFORCE, leave one out: make completions likelier that earn more than the mean of the others of the same
    prompt."""

    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the ratio of new and old policy is 1 before the first update.",
        group="model",
    )
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 is usual for all weights: the signal is noisy, and the model can already speak. About"
        " 10 times that for LoRA.",
        gt=0,
    )

    # -- rollouts
    num_generations: int = option(
        2,
        "Completions of a prompt, of which each is measured against the others; at least 2. The paper has 2 and 4: more"
        " make a better baseline, fewer leave room for more prompts.",
        group="rollouts",
        gt=1,
    )
    steps_per_generation: int | None = option(
        None,
        "Micro-batches that a rollout is cut into, of each process. Not set: gradient_accumulation_steps, so that a "
        "rollout is one optimizer step.",
        group="rollouts",
        gt=0,
    )
    generation_batch_size: int | None = option(
        None, "The same as a number of completions, over all processes.", group="rollouts", gt=0
    )
    num_iterations: int = option(
        1,
        "Passes over each rollout. 1: more make use of completions that are no longer the policy's.",
        group="rollouts",
        gt=0,
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave completions that were cut short by max_completion_length out of the loss and of what it is divided by."
        " They stay in the rewards that others are measured against.",
        group="rollouts",
    )

    # -- rewards
    reward_clip_range: list[float] | None = option(
        None,
        "The least and the most that a completion's summed rewards count for, before the KL penalty. Not set: no"
        " limits.",
    )
    beta: float = option(
        0.05,
        "Weight of the KL divergence from the reference, which is taken off the reward of a completion, summed over its"
        " tokens: it matters the more the longer completions are. 0: no reference is held.",
        ge=0,
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
    )
    epsilon_high: float | None = option(None, "Nothing is gained above a ratio of 1 + this. Not set: epsilon.", gt=0)

    # -- the reference
    ref_model: str | None = option(
        None,
        "Folder or hub id of another model as the reference. Not set: the model as the run found it.",
        aliases=("ref_model_name_or_path",),
    )
    sync_ref_model: bool = option(False, "Let the reference follow the policy (TR-DPO, arXiv 2404.09656).")
    ref_model_mixup_alpha: float = option(
        0.6, "The policy's share when it is mixed into the reference; 1 copies it. 0.6 is the paper's.", gt=0, le=1
    )
    ref_model_sync_steps: int = option(512, "Optimizer steps between two such mixings; 512 is the paper's.", gt=0)

    @property
    def clip_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of new and old policy that pays."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def rollout_plan(self, processes: int) -> RolloutPlan:
        return grouped_plan(
            self,
            processes,
            num_generations=self.num_generations,
            steps_per_generation=self.steps_per_generation,
            generation_batch_size=self.generation_batch_size,
            num_iterations=self.num_iterations,
        )

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
        self._check_reference()

    def _check_reference(self) -> None:
        if not self.beta:
            self.refuse(REFERENCED, "with beta: 0, which holds no reference")
        if not self.sync_ref_model:
            self.refuse(SYNCED, "without sync_ref_model; set it, or leave this out")
        elif self.use_peft:
            raise ConfigError(
                "sync_ref_model: with use_peft the reference is the policy with its adapter off, which can't follow "
                "the policy; train all weights, or leave one of the two out"
            )
        for problem in place_problems(self.ref_model or "", ""):
            raise ConfigError(f"ref_model: {problem}")
        if self.ref_model is not None and self.ref_model == self.model:
            raise ConfigError(
                "ref_model: is the model that is trained; leave it out, the reference is that model as the run finds it"
            )
