"""The fields of GRPO. Imports no torch.

Longer than 300 lines: it is one list of fields, in the order of the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_grpo import ranges
from ft_grpo.ranges import CLIPPED
from ft_host.api import ConfigError, GroupedRolloutConfig, ReferenceConfig, option

# The keys of ft_grpo.losses.LOSSES, listed here since those are functions of tensors.
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CISPO_CAP = 5.0

# Fields that only one or some losses read, with their defaults.
OWN_FIELDS = {
    "epsilon": (CLIPPED, 0.2),
    "epsilon_high": ((*CLIPPED, "cispo"), None),
    "delta": (CLIPPED, None),
    "sapo_temperature_neg": (("sapo",), 1.05),
    "sapo_temperature_pos": (("sapo",), 1.0),
    "vespo_k_pos": (("vespo",), 2.0),
    "vespo_lambda_pos": (("vespo",), 3.0),
    "vespo_k_neg": (("vespo",), 3.0),
    "vespo_lambda_neg": (("vespo",), 2.0),
}
# Fields that need another one to be set, with their defaults.
ADAPTIVE = {"entropy_coef_min": 0.0, "entropy_coef_max": 1.0, "entropy_coef_delta": 0.005, "entropy_target": 0.2}
BOUNDS = {"importance_sampling_clip_max": 3.0, "importance_sampling_clip_min": None}


@dataclass(kw_only=True)
class GRPOConfig(GroupedRolloutConfig, ReferenceConfig):
    """Group relative policy optimization: raise the likelihood of completions with more reward than others of their
    prompt.
    """

    state_keys: ClassVar[tuple[str, ...]] = ("entropy",)
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
        "cispo_clip_ratio",
        "vespo/phi_seq_mean",
        "policy_loss",
        "entropy_coef",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
        "sampling/importance_sampling_ratio/min",
        "sampling/importance_sampling_ratio/mean",
        "sampling/importance_sampling_ratio/max",
        "sampling/effective_sample_size",
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
    num_iterations: int = option(1, "Passes over each rollout.", group="rollouts", gt=0)
    dynamic_sampling: bool = option(
        False,
        "Leave out groups without a signal, whose completions all earn the same, and draw further prompts in "
        "their place (DAPO, arXiv 2503.14476).",
        group="rollouts",
    )
    mask_truncated_completions: bool = option(
        False,
        "Leave completions that were cut short by max_completion_length out of the loss and its denominator "
        "(DAPO). Their rewards are still compared with those of others.",
        group="rollouts",
    )

    # -- advantages
    scale_rewards: str = option(
        "group",
        "Divisor of a completion's difference from the mean of its group: the standard deviation of the group, "
        "that of the batch (the whole rollout, arXiv 2508.08221), or none (Dr. GRPO: otherwise easy and hard "
        "prompts weigh more).",
        choices=("group", "batch", "none"),
        also={True: "group", False: "none"},
    )
    multi_objective_aggregation: str = option(
        "sum_then_normalize",
        "Several rewards: add them, then compare completions; or compare completions in each, add, and scale over the "
        "whole rollout (GDPO, arXiv 2601.05242), so that none drowns the others.",
        choices=("sum_then_normalize", "normalize_then_sum"),
    )

    # -- the loss
    loss_type: str = option(
        "dapo",
        f"The loss: {', '.join(LOSS_TYPES)}. dapo is the mean over tokens of the clipped objective, without a bias "
        "towards length.",
        choices=LOSS_TYPES,
    )
    importance_sampling_level: str = option(
        "token",
        "Ratios of new and old policy of each token, or of whole completions: the geometric mean over tokens (GSPO, "
        "arXiv 2507.18071, which goes with loss_type grpo).",
        choices=("token", "sequence"),
    )
    epsilon: float = option(
        0.2, f"Nothing is gained below a ratio of 1 - this. Of {', '.join(CLIPPED)}.", gt=0, le=1, usual=ranges.EPSILON
    )
    epsilon_high: float | None = option(
        None,
        "Nothing is gained above a ratio of 1 + this; not set: epsilon. DAPO has 0.28. For cispo it is the "
        f"largest ratio itself; not set: {CISPO_CAP:g}, as in arXiv 2510.13786.",
        gt=0,
        usual=ranges.EPSILON_HIGH,
    )
    delta: float | None = option(
        None,
        "Largest ratio if the advantage is below 0 (two-sided clipping, arXiv 2505.07291). Must be above 1 + "
        "epsilon_high. Not set: no limit.",
        gt=0,
        usual=ranges.DELTA,
    )
    sapo_temperature_neg: float = option(
        1.05,
        "sapo: how fast tokens lose weight as they leave the old policy, if the advantage isn't above 0.",
        gt=0,
        usual=ranges.SAPO_TEMPERATURE_NEG,
    )
    sapo_temperature_pos: float = option(
        1.0, "sapo: the same if it is above 0.", gt=0, usual=ranges.SAPO_TEMPERATURE_NEG
    )
    vespo_k_pos: float = option(
        2.0, "vespo: power of the ratio if the advantage is at least 0.", gt=0, usual=ranges.VESPO_K_POS
    )
    vespo_lambda_pos: float = option(
        3.0, "vespo: how fast large ratios lose weight there.", gt=0, usual=ranges.VESPO_K_POS
    )
    vespo_k_neg: float = option(
        3.0, "vespo: power of the ratio if the advantage is below 0.", gt=0, usual=ranges.VESPO_K_POS
    )
    vespo_lambda_neg: float = option(
        2.0, "vespo: how fast large ratios lose weight there.", gt=0, usual=ranges.VESPO_K_POS
    )
    off_policy_mask_threshold: float | None = option(
        None,
        "Leave out completions with an advantage below 0 that are less likely under the policy than under the "
        "sampler, by more than this (nats a token; DeepSeek-V3.2, arXiv 2512.02556). Not set: none.",
        gt=0,
        usual=ranges.OFF_POLICY_MASK_THRESHOLD,
    )
    top_entropy_quantile: float = option(
        1.0,
        "Learn only from this share of the tokens of each optimizer step, those of highest entropy (arXiv "
        "2506.01939, which has 0.2). Below 1 it costs one more forward pass.",
        ge=0,
        le=1,
        usual=ranges.TOP_ENTROPY_QUANTILE,
    )

    # -- entropy bonus
    entropy_coef: float = option(
        0.0,
        "Weight of the mean entropy of a token, which is subtracted from the loss. 0: none.",
        ge=0,
        usual=ranges.ENTROPY_COEF,
    )
    use_adaptive_entropy: bool = option(
        False,
        "Raise and lower entropy_coef from step to step (Skywork-OR1, arXiv 2505.22312): up by entropy_coef_delta after"
        " a step whose entropy is not above entropy_target, else down; it counts only after the former. Costs one more"
        " forward pass.",
    )
    entropy_coef_min: float = option(0.0, "Smallest entropy_coef of use_adaptive_entropy.", ge=0)
    entropy_coef_max: float = option(
        1.0, "Largest entropy_coef of use_adaptive_entropy.", ge=0, usual=ranges.ENTROPY_COEF_MAX
    )
    entropy_coef_delta: float = option(
        0.005, "Change of entropy_coef by use_adaptive_entropy at each step.", gt=0, usual=ranges.ENTROPY_COEF_DELTA
    )
    entropy_target: float = option(
        0.2,
        "The mean entropy (nats a token) below which use_adaptive_entropy acts. 0.2 is nearly no entropy: look "
        "at `entropy` of a run's first steps.",
        ge=0,
        usual=ranges.ENTROPY_TARGET,
    )

    # -- the reference
    beta: float = option(
        0.0,
        "Weight of the KL divergence from the reference. 0: no reference is held, as the clipping and short runs keep"
        " the policy near enough for rewards that can be verified.",
        ge=0,
        usual=ranges.BETA,
    )
    use_bias_correction_kl: bool = option(
        True,
        "Multiply the KL estimate by the ratio of new and old policy, which makes its gradient that of the KL "
        "(DeepSeek-V3.2, arXiv 2512.02556).",
    )

    # -- a sampler that differs
    importance_sampling_correction: str = option(
        "auto",
        "What to do if the sampler's probabilities aren't those of the trainer: weight by their ratio, of tokens "
        "or whole completions, up to the largest allowed (truncate), or leave out tokens or completions beyond "
        "it (mask). token_truncate is TIS, token_mask IcePop. auto: none for the backend transformers with "
        "rollouts that aren't made ahead, sequence_mask otherwise (token_truncate with vespo).",
        choices=("auto", *CORRECTIONS),
        aliases=("vllm_importance_sampling_mode",),
    )
    importance_sampling_clip_max: float | None = option(
        3.0,
        "The largest such ratio. none: no limit.",
        gt=0,
        aliases=("vllm_importance_sampling_clip_max",),
        usual=ranges.IMPORTANCE_SAMPLING_CLIP_MAX,
    )
    importance_sampling_clip_min: float | None = option(
        None,
        "The smallest such ratio. Not set: no limit.",
        gt=0,
        aliases=("vllm_importance_sampling_clip_min",),
        usual=ranges.IMPORTANCE_SAMPLING_CLIP_MIN,
    )

    # -- what follows from the fields

    @property
    def clip_high(self) -> float:
        """The largest ratio of new and old policy that pays."""
        if self.loss_type == "cispo":
            return CISPO_CAP if self.epsilon_high is None else self.epsilon_high
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    @property
    def correction(self) -> str:
        """One of CORRECTIONS."""
        if self.importance_sampling_correction != "auto":
            return self.importance_sampling_correction
        if self.backend == "transformers" and not self.samples_ahead:
            return "none"
        return "token_truncate" if self.loss_type == "vespo" else "sequence_mask"

    @property
    def entropy_bonus(self) -> bool:
        return self.entropy_coef != 0 or self.use_adaptive_entropy

    @property
    def no_reference(self) -> str | None:
        return None if self.beta else "with beta: 0, which holds no reference"

    # -- refusals

    def check(self) -> None:
        super().check()
        self._check_loss()
        self._check_entropy()
        if self.no_reference is not None:
            self.refuse({"use_bias_correction_kl": True}, self.no_reference)
        self._check_correction()
        if self.multi_objective_aggregation == "normalize_then_sum" and self.scale_rewards != "group":
            raise ConfigError(
                f"scale_rewards: {self.scale_rewards} has no effect with multi_objective_aggregation:"
                " normalize_then_sum, which scales each reward by its group and their sum by the batch"
            )

    def _check_loss(self) -> None:
        for name, (losses, usual) in OWN_FIELDS.items():
            if self.loss_type not in losses:
                self.refuse({name: usual}, f"on {self.loss_type}, only on {', '.join(losses)}")
        if self.loss_type == "cispo" and self.clip_high < 1:
            raise ConfigError(
                f"epsilon_high: {self.epsilon_high} with cispo, where it is the largest ratio itself: every token would"
                f" weigh {self.epsilon_high} at most; expected at least 1 ({CISPO_CAP:g} is usual)"
            )
        if self.delta is not None and self.delta <= self.clip_high:
            raise ConfigError(
                f"delta: {self.delta} clips before epsilon_high does, at {self.clip_high:g}; expected more than that"
            )
        if self.loss_type == "vespo" and self.importance_sampling_level == "sequence":
            raise ConfigError(
                "importance_sampling_level: sequence has no effect on vespo, which weighs whole completions by itself"
            )

    def _check_entropy(self) -> None:
        if not self.use_adaptive_entropy:
            self.refuse(ADAPTIVE, "without use_adaptive_entropy")
        elif not self.entropy_coef_min <= self.entropy_coef <= self.entropy_coef_max:
            raise ConfigError(
                f"entropy_coef: starts at {self.entropy_coef:g}, expected something from entropy_coef_min "
                f"{self.entropy_coef_min:g} to entropy_coef_max {self.entropy_coef_max:g}"
            )

    def _check_correction(self) -> None:
        smallest, largest = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if self.correction == "none":
            self.refuse(BOUNDS, "without importance_sampling_correction")
            return
        if smallest is not None and largest is not None and smallest >= largest:
            raise ConfigError(
                f"importance_sampling_clip_min: {smallest:g} must be below importance_sampling_clip_max {largest:g}"
            )
        if self.correction.endswith("mask") and smallest is None and largest is None:
            raise ConfigError(
                f"importance_sampling_correction: {self.correction} masks nothing without importance_sampling_clip_max"
                " or importance_sampling_clip_min; token_truncate and sequence_truncate weigh without them"
            )
        if self.loss_type == "vespo" and self.correction.startswith("sequence"):
            raise ConfigError(
                f"importance_sampling_correction: {self.correction} with vespo, which makes a completion's ratio of"
                " those of its tokens; expected token_truncate or token_mask"
            )
