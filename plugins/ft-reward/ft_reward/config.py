"""The fields of reward modelling. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, RunConfig, Usual, option


@dataclass(kw_only=True)
class RewardConfig(RunConfig):
    """Reward modelling: a score for a prompt with its completion, higher for the chosen one of a pair."""

    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")
    formats: ClassVar[tuple[str, ...]] = ("preference",)
    # Scores have no zero: only their differences say anything.
    metric_directions: ClassVar[dict[str, str]] = {
        "margin": "higher",
        "mean_reward": "neither",
        "min_reward": "neither",
        "max_reward": "neither",
    }

    disable_dropout: bool = option(
        True,
        "Train without the model's own dropout, so that the scores of a pair differ only by their texts.",
        group="model",
    )
    learning_rate: float = option(
        1e-4,
        "Peak learning rate. 1e-4, since the head that gives the score starts from random weights; it suits LoRA "
        "too. For all weights of a large model about a tenth of it.",
        gt=0,
    )
    center_rewards_coefficient: float | None = option(
        None,
        "Weight of the square of the sum of a pair's two scores (arXiv 2312.09244), which keeps scores around 0: "
        "the loss itself sees differences only. 0.01 is that paper's value. Not set: off.",
        gt=0,
        usual=Usual(
            high=0.2,
            above=("no_learning", "overfitting"),  # held-out scores aren't pressed by as much as those trained on
            why="all scores are pressed towards 0, and so are their differences",
            source="arXiv 2312.09244: 0.01",
            new=0.01,
        ),
    )

    def check(self) -> None:
        super().check()
        if self.eval_reward:
            raise ConfigError(
                "eval_reward: a reward model generates no completions to score; remove it, held-out rows are "
                "evaluated by eval_accuracy"
            )
        if self.packing and self.packing_strategy != "bfd":
            raise ConfigError(
                f"packing_strategy: {self.packing_strategy} cuts rows anywhere, but a pair of completions must stay "
                "whole; use bfd"
            )
        if self.router_aux_loss_coef:
            raise ConfigError("router_aux_loss_coef: a reward model is trained without the load-balancing loss")
