"""The fields of ORPO. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, RunConfig, Usual, option


@dataclass(kw_only=True)
class ORPOConfig(RunConfig):
    """Odds ratio preference optimization: supervised fine-tuning on chosen completions, and the odds of chosen against
    rejected ones, in one run without a reference.
    """

    formats: ClassVar[tuple[str, ...]] = ("preference",)
    metrics: ClassVar[tuple[str, ...]] = (
        "nll_loss",
        "log_odds_ratio",
        "log_odds_chosen",
        "logps/chosen",
        "logps/rejected",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
    )
    # A side's log-prob moves with the other's: margins and accuracies tell what is better.
    metric_directions: ClassVar[dict[str, str]] = {"rewards/chosen": "neither", "rewards/rejected": "neither"}
    elsewhere: ClassVar[dict[str, str]] = {
        "ref_model": "not needed; ORPO compares the two completions with each other, and has no reference",
        "orpo_alpha": "here it is beta",
        "lambda": "here it is beta",
    }

    disable_dropout: bool = option(True, "Train without the model's own dropout, as TRL does.", group="model")
    learning_rate: float = option(
        1e-6,
        "Peak learning rate. 1e-6 is for models that are tuned already; from a base model, which learns its task in "
        "this run, 5e-6 to 8e-6 as in the paper. About 10 times that for LoRA.",
        gt=0,
    )
    beta: float = option(
        0.1,
        "Weight of the odds ratio beside the likelihood of the chosen completion: the paper's lambda. 0.1 is its value "
        "for most models, 0.25 and 0.2 for some.",
        gt=0,
        usual=Usual(
            low=0.01,
            high=2,
            below=("no_learning", "no_signal"),
            above=("divergence", "forgetting"),
            why=("the odds ratio hardly counts beside the likelihood", "the likelihood hardly counts beside it"),
            source="ORPO, arXiv 2403.07691: 0.1 to 1",
            new=0.1,
        ),
    )
    nll_on_prompt: bool = option(
        True,
        "Count the tokens of the prompt in the likelihood term, as the authors' code and TRL do; false counts those of "
        "the chosen completion alone, as supervised fine-tuning on completions does.",
    )

    def check(self) -> None:
        super().check()
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy: {self.packing_strategy} cuts rows anywhere, but a pair of completions must stay "
                "whole; use bfd"
            )
