"""The fields of SimPO and CPO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ft_host.api import ConfigError, RunConfig, Usual, option

# The keys of ft_simpo.method.LOSSES, listed here since those are functions of tensors.
LOSS_TYPES = ("simpo", "sigmoid", "hinge", "ipo")
MEANS = ("simpo", "ipo")  # of log-probs per token; the others take sums over a completion
SMOOTHED = ("simpo", "sigmoid")


@dataclass(kw_only=True)
class SimPOConfig(RunConfig):
    """Simple preference optimization and CPO: make chosen completions likelier than rejected ones, without a
    reference.
    """

    formats: ClassVar[tuple[str, ...]] = ("preference",)
    metrics: ClassVar[tuple[str, ...]] = (
        "nll_loss",
        "logps/chosen",
        "logps/rejected",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
    )
    # A side's log-prob moves with the other's: margins and accuracies tell what is better.
    metric_directions: ClassVar[dict[str, str]] = {"rewards/chosen": "neither", "rewards/rejected": "neither"}
    trl_names: ClassVar[tuple[str, ...]] = ("cpo",)
    trl_defaults: ClassVar[dict[str, tuple[Any, ...]]] = {
        "loss_type": ("sigmoid", "the package is named after simpo; sigmoid is CPO"),
        "beta": (0.1, "the values of SimPO's paper are 2 to 10"),
        "cpo_alpha": (1.0, "SimPO has no likelihood term; CPO has"),
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "ref_model": "not needed; the two completions are compared with each other, and there is no reference",
        "gamma": "here it is simpo_gamma",
        "gamma_beta_ratio": "here it is simpo_gamma, which is beta times that",
        "sft_weight": "here it is cpo_alpha",
    }

    disable_dropout: bool = option(True, "Train without the model's own dropout, as TRL does.", group="model")
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. Nothing holds the policy: 3e-7 to 1e-6 for all weights, about 10 times that for LoRA.",
        gt=0,
    )
    loss_type: str = option(
        "simpo",
        "The loss: simpo compares mean log-probs of a token, with a target margin; sigmoid (CPO) and hinge compare "
        "sums over a completion; ipo brings the difference of means to 1 / (2 beta).",
        choices=LOSS_TYPES,
    )
    beta: float = option(
        2.0,
        "Scale of the difference of log-probs: 2 to 10 for simpo, whose differences are of means per token; 0.1 for "
        "sigmoid and hinge. For ipo it is tau.",
        gt=0,
        usual=(
            Usual(
                low=0.5,
                high=20,
                below=("no_learning",),
                above=("saturation", "divergence", "no_signal"),
                why=("differences of means per token are small numbers", "a pair is settled by a single update"),
                source="SimPO, arXiv 2405.14734: 2 to 10",
                only={"loss_type": ("simpo",)},
                new=2.0,
            ),
            Usual(
                low=0.005,
                high=1,
                below=("no_learning",),
                above=("saturation", "divergence", "no_signal"),
                why=("what pairs say hardly counts", "a pair is settled by a single update"),
                source="CPO, arXiv 2401.08417: 0.1",
                only={"loss_type": ("sigmoid", "hinge", "ipo")},
                new=0.1,
            ),
        ),
    )
    simpo_gamma: float = option(
        0.5,
        "Margin that simpo aims at, in rewards: beta times the difference of means. The paper has 0.3 to 0.5 of beta.",
        ge=0,
        usual=Usual(
            high=10,
            above=("divergence", "forgetting"),
            why="pairs are pulled apart further than is worth anything",
            source="SimPO, arXiv 2405.14734: 0.6 to 5",
            new=0.5,
        ),
    )
    cpo_alpha: float = option(
        0.0,
        "Weight of the likelihood of the chosen completion, a mean over its tokens. 1 is CPO's, and holds the policy "
        "to what was chosen; 0 is SimPO's.",
        ge=0,
        usual=Usual(
            high=20,
            above=("no_learning",),
            why="what pairs say hardly counts beside it",
            source="CPO, arXiv 2401.08417: 1",
            new=1.0,
        ),
    )
    label_smoothing: float = option(
        0.0, f"Assumed share of swapped preferences, for {' and '.join(SMOOTHED)}.", ge=0, le=0.5
    )
    alpha: float = option(
        0.0,
        "AlphaPO (arXiv 2501.03884): compare (1 - p^-alpha) / alpha in place of log p. 0: log p.",
        usual=Usual(
            low=-2,
            high=2,
            below=("no_learning",),
            above=("divergence",),
            why="powers of small probabilities are next to nothing, or dwarf everything",
            source="AlphaPO, arXiv 2501.03884: 0.1 to 0.25",
            new=0.1,
        ),
    )

    def check(self) -> None:
        super().check()
        if self.loss_type != "simpo":
            usual = type(self).__dataclass_fields__["simpo_gamma"].default
            self.refuse({"simpo_gamma": usual}, f"on {self.loss_type}, only on simpo")
        if self.loss_type not in SMOOTHED:
            self.refuse({"label_smoothing": 0.0}, f"on {self.loss_type}, only on {' and '.join(SMOOTHED)}")
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy: {self.packing_strategy} cuts rows anywhere, but a pair of completions must stay "
                "whole; use bfd"
            )
