"""The fields of PPO. Imports no torch.

Longer than 300 lines: it is one list of fields, in the order of the help.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import ConfigError, RolloutConfig, RolloutPlan, Usual, option

CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
BOUNDS = {"importance_sampling_clip_max": 3.0, "importance_sampling_clip_min": None}


@dataclass(kw_only=True)
class PPOConfig(RolloutConfig):
    """PPO: raise the reward of sampled completions, token by token, with a value model that is trained along."""

    state_keys: ClassVar[tuple[str, ...]] = ("episode",)
    metrics: ClassVar[tuple[str, ...]] = (
        "objective/scores",
        "objective/rlhf_reward",
        "objective/kl",
        "objective/non_score_reward",
        "objective/entropy",
        "objective/unscored",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_var",
        "val/explained_variance",
        "val/num_eos_tokens",
        "sampling/sampling_logp_difference/mean",
        "sampling/sampling_logp_difference/max",
        "sampling/importance_sampling_ratio/min",
        "sampling/importance_sampling_ratio/mean",
        "sampling/importance_sampling_ratio/max",
        "sampling/effective_sample_size",
        "episode",
    )
    formats: ClassVar[tuple[str, ...]] = ("prompt-only",)
    reward_metric: ClassVar[str] = "objective/scores"
    progress_metrics: ClassVar[tuple[str, ...]] = ("objective/kl", "completions/mean_length")
    # of TRL up to 1.10, which had PPO
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "max_length": (None, "longer prompts are left out; it is of prompts alone")
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the ratio of new and old policy is 1 before the first update.",
        group="model",
    )
    learning_rate: float = option(
        3e-6,
        "Peak learning rate of policy and value model. 3e-6 is usual for all weights in PPO on language models. "
        "LoRA takes about 10 times that.",
        gt=0,
    )

    # -- rollouts
    max_completion_length: int = option(
        53,
        "Longest completion in tokens; with tools, of all its turns. 53 is that of the summaries that PPO on language "
        "models was tuned on (arXiv 2009.01325); most tasks need more.",
        group="generation",
        gt=0,
        aliases=("response_length",),
    )
    temperature: float = option(
        0.7, "Temperature of sampling, and of policy, reference and entropy in the loss.", group="rollouts", gt=0
    )
    stop_token: str | None = option(
        None,
        "Text of one token that ends a completion, beside the end tokens of the model, which always do.",
        group="rollouts",
    )
    stop_token_id: int | None = option(None, "The same token by its id.", group="rollouts", ge=0)
    missing_eos_penalty: float | None = option(
        None,
        "Subtracted from the score of a completion that was cut short by max_completion_length.",
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
    num_mini_batches: int = option(
        1,
        "Optimizer steps of a pass over a rollout, which has per_device_train_batch_size × "
        "gradient_accumulation_steps × processes × num_mini_batches prompts.",
        group="rollouts",
        gt=0,
        usual=Usual(
            high=32,
            above=("divergence", "forgetting"),
            why="updates are made of a few completions each",
            source="PPO implementations: 1 to 32",
        ),
    )
    num_ppo_epochs: int = option(
        4,
        "Passes over each rollout; the first updates at the sampled policy, the others are clipped.",
        gt=0,
        usual=Usual(
            high=10,
            above=("divergence", "forgetting"),
            why="the later passes learn from completions that the policy would no longer write",
            source="PPO, arXiv 1707.06347: 3 to 10",
        ),
    )

    # -- models
    value_model: str | None = option(
        None,
        "Folder or hub id that the value model starts from: a language model, or a reward model, whose head it "
        "then keeps. Not set: the model that the policy starts from.",
        aliases=("value_model_name_or_path",),
        path=True,
    )
    value_head: bool = option(
        False,
        "Predict values from the policy's own last hidden states by a linear layer, instead of a model of their "
        "own: half the memory and time, but both losses train the same weights.",
    )
    ref_model: str | None = option(
        None,
        "Folder or hub id of another model as the reference. Not set: the model as it was before training.",
        aliases=("ref_model_name_or_path",),
        path=True,
    )

    # -- rewards of tokens
    kl_coef: float = option(
        0.05,
        "Weight of the KL divergence from the reference in each token's reward. 0: no reference is held.",
        ge=0,
        usual=Usual(
            high=0.5,
            above=("no_learning",),
            why="staying near the reference outweighs the reward",
            source="arXiv 2009.01325: 0.05; 0.001 to 0.2",
        ),
    )
    kl_estimator: str = option(
        "k1",
        "Estimate of that divergence from the sampled token: 'k1' is the log-ratio, 'k3' is never negative and "
        "varies less. Near the reference their expectations hardly differ.",
        choices=("k1", "k3"),
    )
    whiten_rewards: bool = option(
        False, "Scale token rewards to a variance of 1 over the whole rollout; their mean stays."
    )

    # -- advantages and losses
    gamma: float = option(
        1.0,
        "Discount of rewards for each later token. 1: the score counts in full at each token of its completion.",
        ge=0,
        le=1,
        usual=Usual(
            far=2,
            low=0.95,
            below=("no_learning", "no_signal", "divergence"),
            why="the reward at the end hardly reaches the first tokens",
            source="arXiv 2009.01325: 1",
        ),
    )
    lam: float = option(
        0.95,
        "Lambda of generalized advantage estimation (arXiv 1506.02438): 1 uses the rewards up to the end, 0 only "
        "the next value.",
        ge=0,
        le=1,
        usual=Usual(
            low=0.8,
            below=("no_learning", "divergence"),
            why="advantages are what the value model says, and little of the reward",
            source="arXiv 1506.02438: 0.9 to 1",
        ),
    )
    cliprange: float = option(
        0.2,
        "The policy loss gains nothing more once the ratio of new and old policy has left 1 ± this.",
        gt=0,
        usual=Usual(
            low=0.02,
            high=0.5,
            below=("no_learning", "divergence"),
            above=("divergence",),
            why=("nearly every update is clipped away", "nothing holds the policy to what sampled"),
            source="PPO, arXiv 1707.06347: 0.1 to 0.3",
        ),
    )
    cliprange_value: float = option(
        0.2,
        "The value loss gains nothing more once a value has moved from its old one by this.",
        gt=0,
        usual=Usual(
            low=0.02, below=("no_learning",), why="values can't follow the returns", source="PPO implementations: 0.2"
        ),
    )
    vf_coef: float = option(
        0.1,
        "Weight of the value loss.",
        gt=0,
        usual=Usual(
            low=0.001,
            high=5,
            below=("no_learning",),
            above=("divergence",),
            why=(
                "the value model learns next to nothing",
                "the value loss drowns the policy's where they share weights",
            ),
            source="PPO, arXiv 1707.06347: 0.5 to 1; 0.1 on language models",
        ),
    )

    # -- a sampler that differs
    importance_sampling_correction: str = option(
        "auto",
        "What to do if the sampler's probabilities aren't those of the trainer: weight the policy loss by their ratio, "
        "of tokens or whole completions, up to the largest allowed (truncate), or leave out tokens or completions "
        "beyond it (mask). auto: none for the backend transformers with rollouts that aren't made ahead, sequence_mask "
        "otherwise.",
        choices=("auto", *CORRECTIONS),
    )
    importance_sampling_clip_max: float | None = option(
        3.0,
        "The largest such ratio. none: no limit.",
        gt=0,
        usual=Usual(
            low=1,
            high=100,
            below=("no_learning", "no_signal"),
            above=("divergence",),
            why=("nearly all that the sampler says is cut away", "weights of completions have no bound"),
            source="TIS, IcePop: 2 to 5",
        ),
    )
    importance_sampling_clip_min: float | None = option(
        None,
        "The smallest such ratio. Not set: no limit.",
        gt=0,
        usual=Usual(
            high=0.9,
            above=("no_learning", "no_signal"),
            why="completions that count as much as they should are left out",
            source="IcePop: 0.5",
        ),
    )

    @property
    def correction(self) -> str:
        """One of CORRECTIONS."""
        if self.importance_sampling_correction != "auto":
            return self.importance_sampling_correction
        return "none" if self.backend == "transformers" and not self.samples_ahead else "sequence_mask"

    def rollout_plan(self, processes: int) -> RolloutPlan:
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes * self.num_mini_batches
        return RolloutPlan(
            prompts=rows, generations=1, steps=self.num_mini_batches, passes=self.num_ppo_epochs, shuffled=True
        )

    def check(self) -> None:
        super().check()
        if self.value_head and self.value_model is not None:
            raise ConfigError(
                "value_head and value_model: values come from a layer on the policy's own states or from a model of"
                " their own; set one of them"
            )
        if not self.kl_coef:
            for name, usual in (("ref_model", None), ("kl_estimator", "k1")):
                if getattr(self, name) != usual:
                    raise ConfigError(f"{name}: has no effect with kl_coef: 0, which holds no reference")
        self._check_correction()
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ConfigError("stop_token and stop_token_id have the same meaning; set one of them")
        if self.stop_token == "eos":
            raise ConfigError(
                "stop_token: completions always end at the EOS token; remove 'eos', or give another token"
            )
        if self.tools or self.environment is not None:
            for name in ("stop_token", "stop_token_id"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name}: a conversation with tools can't be cut at a token; remove it")

    def _check_correction(self) -> None:
        smallest, largest = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if self.correction == "none":
            self.refuse(BOUNDS, "without importance_sampling_correction")
        elif smallest is not None and largest is not None and smallest >= largest:
            raise ConfigError(
                f"importance_sampling_clip_min: {smallest:g} must be below importance_sampling_clip_max {largest:g}"
            )
        elif self.correction.endswith("mask") and smallest is None and largest is None:
            raise ConfigError(
                f"importance_sampling_correction: {self.correction} masks nothing without importance_sampling_clip_max"
                " or importance_sampling_clip_min; token_truncate and sequence_truncate weigh without them"
            )
