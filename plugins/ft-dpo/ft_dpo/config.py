"""The fields of Direct Preference Optimization. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, ReferenceConfig, Usual, function_problems, nearest, option

# Losses that other tools have among theirs of pairs, and what to take.
ELSEWHERE = {
    "kto_pair": "ft-host train kto takes pairs apart and learns from each completion",
    "aot_pair": "here it is aot_unpaired",
    "simpo": "not offered as a loss; sigmoid_norm with reference_free: true also compares log-probs per token",
    "orpo": "not offered; loss_type: [sft, sigmoid] with reference_free: true is near it",
    "cpo": "not offered; loss_type: [sft, sigmoid] with reference_free: true is near it",
    "dpo": "here it is sigmoid",
}
# The keys of ft_dpo.losses.LOSSES and DIVERGENCES, listed here since those are functions of tensors.
LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "sft",
)
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # those that use label_smoothing
SORTED = ("aot", "aot_unpaired")  # those that match pairs with other pairs of the step
# Those of the difference of the two rewards, where the unknown normaliser of f-DPO's reward cancels.
DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")


@dataclass(kw_only=True)
class DPOConfig(ReferenceConfig):
    """Direct Preference Optimization: make chosen completions likelier than rejected ones."""

    metrics: ClassVar[tuple[str, ...]] = (
        "entropy",
        "mean_token_accuracy",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
        "logits/chosen",
        "logits/rejected",
    )
    formats: ClassVar[tuple[str, ...]] = ("preference",)
    # Rewards of a side move with the other's: margins and accuracies tell what is better.
    metric_directions: ClassVar[dict[str, str]] = {"rewards/chosen": "neither", "rewards/rejected": "neither"}

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that policy and reference differ only by training.",
        group="model",
    )
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 is usual for all weights: the model already has its skills, and a log-ratio "
        "adds up over the tokens of a completion. About 10 times that for LoRA.",
        gt=0,
    )
    loss_type: list[str] | str = option(
        ["sigmoid"],
        f"The loss, or several that are added: {', '.join(LOSS_TYPES)}, or a function of your own, as "
        "package.module:function or file.py:function, called with (pairs, config).",
    )
    loss_weights: list[float] = option(
        [],
        "The weight of each of several losses. Not set: 1 each.",
        ge=0,
        usual=Usual(
            high=20,
            above=("divergence", "no_learning"),
            why="one loss drowns the others, or outweighs what the learning rate is meant for",
            source="own judgement",
            new=1.0,
        ),
    )
    beta: float = option(
        0.1,
        "How strongly the policy is tied to the reference: larger stays closer. 0.1 is the paper's value. For "
        "ipo it is tau.",
        gt=0,
        usual=(
            Usual(
                low=0.005,
                high=1,
                below=("divergence", "forgetting", "no_learning"),
                above=("saturation", "divergence", "no_learning", "no_signal"),
                why=("nothing holds the policy to the reference", "a pair is settled by a single update"),
                source="DPO, arXiv 2305.18290: 0.1 to 0.5; 0.01 and above since",
                only={"loss_type": tuple(name for name in LOSS_TYPES if name != "sigmoid_norm")},
                new=0.1,
            ),
            Usual(
                low=0.05,
                high=20,
                below=("divergence", "forgetting", "no_learning"),
                above=("saturation", "divergence", "no_learning", "no_signal"),
                why=("nothing holds the policy to the reference", "a pair is settled by a single update"),
                source="SimPO, arXiv 2405.14734: 2 to 10, of log-probs per token",
                only={"loss_type": ("sigmoid_norm",)},
                new=2.0,
            ),
        ),
    )
    label_smoothing: float = option(
        0.0,
        "Assumed share of swapped preferences, for robust, exo_pair (which needs it; its paper has 0.001), aot "
        "and aot_unpaired.",
        ge=0,
        le=0.5,
        usual=Usual(
            high=0.3,
            above=("no_learning",),
            why="most of what pairs say is taken for noise",
            source="cDPO; robust DPO, arXiv 2403.00409",
        ),
    )
    f_divergence_type: str = option(
        "reverse_kl",
        "The divergence that ties the policy to the reference (arXiv 2309.16240), for losses of the difference "
        f"of the two rewards ({', '.join(DIFFERENCES)}). reverse_kl is DPO's own.",
        choices=DIVERGENCES,
    )
    f_alpha_divergence_coef: float = option(
        0.5,
        "Alpha of alpha_divergence: 0 is forward_kl, 1 is reverse_kl.",
        usual=Usual(
            low=0,
            high=1,
            below=("no_learning",),
            above=("divergence", "no_learning"),
            why="0 is forward_kl and 1 reverse_kl; beyond them it is no divergence between the two",
            source="arXiv 2309.16240",
        ),
    )
    ld_alpha: float | None = option(
        None,
        "LD-DPO (arXiv 2409.06411): tokens beyond the length of the shorter completion count by this much only, "
        "against a preference for length. Not set: all count as 1.",
        ge=0,
        le=1,
    )
    use_weighting: bool = option(
        False,
        "WPO (arXiv 2406.11827): weight a pair by how likely the policy would write it itself, for data from "
        "other models.",
    )
    discopop_tau: float = option(
        0.05,
        "discopop's temperature of the mix of its two halves; 0.05 is the paper's.",
        gt=0,
        usual=Usual(
            low=0.005,
            high=1,
            below=("divergence",),
            above=("no_learning",),
            why="the mix of its two halves becomes one of them",
            source="arXiv 2406.08414: 0.05",
        ),
    )
    reference_free: bool = option(
        False, "Treat every completion as equally likely under the reference, and load no reference."
    )
    precompute_ref_log_probs: bool | None = option(
        None,
        "Compute the log-probs of the reference once, before the first step, and keep them on disk for this and "
        "later runs (true), or hold the reference and compute them at each step (false). Not set: true, unless "
        "the reference is the policy with its adapter off, is synchronised, or the data is a stream.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]

    def check(self) -> None:
        self.__post_init__()  # it may have been set since
        super().check()
        self._check_losses()
        self._check_effects()
        self._check_precomputed()
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy: {self.packing_strategy} cuts rows anywhere, but a pair of completions must stay "
                "whole; use bfd"
            )

    def _check_losses(self) -> None:
        if not self.loss_type:
            raise ConfigError(f"loss_type: found an empty list, expected some of {', '.join(LOSS_TYPES)}")
        for name in self.loss_type:
            if ":" in name:
                for problem in function_problems(name):
                    raise ConfigError(f"loss_type: {problem}")
            elif name not in LOSS_TYPES:
                said = f"; {ELSEWHERE[name]}" if name in ELSEWHERE else nearest(name, LOSS_TYPES)
                raise ConfigError(
                    f"loss_type: there is no {name!r}{said}; there are {', '.join(LOSS_TYPES)}, "
                    "and a function of your own as package.module:function"
                )
            if self.loss_type.count(name) > 1:
                raise ConfigError(f"loss_type: {name} is given twice; give it once, with a weight in loss_weights")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ConfigError(
                f"loss_weights: found {len(self.loss_weights)} for {len(self.loss_type)} losses "
                f"({', '.join(self.loss_type)}), expected one each"
            )

    def _check_effects(self) -> None:
        """Refuse options that no loss in use reads. A user's own function may read any."""
        used = set(self.loss_type)
        own = any(":" in name for name in used)
        said = ", ".join(self.loss_type)
        if self.label_smoothing and not own and not used & set(SMOOTHED):
            raise ConfigError(
                f"label_smoothing: has no effect on {said}, only on {', '.join(SMOOTHED)}; robust is sigmoid for "
                "preferences of which some are swapped"
            )
        if "exo_pair" in used and not self.label_smoothing:
            raise ConfigError(
                "label_smoothing: exo_pair needs it above 0, as the logarithm of it is part of the loss; its paper "
                "has 0.001"
            )
        if "robust" in used and self.label_smoothing == 0.5:
            raise ConfigError(
                "label_smoothing: robust divides by 1 - 2 label_smoothing, so it must be below 0.5; at 0.5 labels are "
                "coin tosses"
            )
        if self.f_divergence_type != "reverse_kl":
            wrong = [name for name in self.loss_type if name in LOSS_TYPES and name not in (*DIFFERENCES, "sft")]
            if wrong or used == {"sft"}:
                raise ConfigError(
                    f"f_divergence_type: {self.f_divergence_type} has no meaning for {', '.join(wrong) or 'sft'}, only "
                    f"for losses of the difference of the two rewards: {', '.join(DIFFERENCES)}"
                )
        if self.f_alpha_divergence_coef != 0.5 and self.f_divergence_type != "alpha_divergence":
            raise ConfigError(
                f"f_alpha_divergence_coef: has no effect on {self.f_divergence_type}; set f_divergence_type to "
                "alpha_divergence"
            )
        if self.discopop_tau != 0.05 and not own and "discopop" not in used:
            raise ConfigError(f"discopop_tau: has no effect on {said}, only on discopop")
        if self.ld_alpha is not None and used == {"sft"}:
            raise ConfigError("ld_alpha: has no effect on sft, which has no rejected completion")
        if self.use_weighting and used & set(SORTED):
            raise ConfigError(
                f"use_weighting: a weight belongs to a pair, and {' and '.join(sorted(used & set(SORTED)))} match a "
                "completion with one of another pair; leave one of the two out"
            )

    def _check_precomputed(self) -> None:
        if not self.precompute_ref_log_probs:
            return
        if self.no_reference is not None:
            self.refuse({"precompute_ref_log_probs": None}, self.no_reference)
        if self.sync_ref_model:
            raise ConfigError(
                "sync_ref_model: the reference changes, so log-probs made before the first step would be another "
                "reference's; remove precompute_ref_log_probs"
            )
        if self.dataset_streaming:
            raise ConfigError(
                "precompute_ref_log_probs: the rows of a stream aren't known before the first step; leave "
                "dataset_streaming out, or hold the reference (precompute_ref_log_probs: false)"
            )

    @property
    def no_reference(self) -> str | None:
        return "with reference_free, which uses no reference" if self.reference_free else None

    @property
    def reference_ahead(self) -> bool:
        """Whether the reference's log-probs are made before the first step, so that it need not be held."""
        if self.precompute_ref_log_probs is not None:
            return self.precompute_ref_log_probs
        free = self.use_peft and self.ref_model is None  # then the reference is the policy with its adapter off
        return not (free or self.sync_ref_model or self.dataset_streaming)
