"""The fields of supervised fine-tuning. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ft_host.api import ConfigError, RunConfig, Usual, option


@dataclass(kw_only=True)
class SFTConfig(RunConfig):
    """Supervised fine-tuning: raise the likelihood of the given texts."""

    metrics: ClassVar[tuple[str, ...]] = ("entropy", "mean_token_accuracy")
    formats: ClassVar[tuple[str, ...]] = ("language modeling", "prompt-completion")

    learning_rate: float = option(
        2e-5,
        "Peak learning rate. 2e-5 is usual for all weights of a pretrained model; about 10 times that for LoRA.",
        gt=0,
    )
    loss_type: str = option(
        "nll",
        "'nll' is the negative log-likelihood; 'dft' weights each token by its own probability, as a constant "
        "(arXiv 2508.05629). TRL's chunked_nll is nll, whose logits are made in tiles anyway.",
        choices=("nll", "dft"),
        also={"chunked_nll": "nll"},
    )
    label_smoothing_factor: float = option(
        0.0,
        "Share of each label that is spread evenly over the vocabulary, in training and evaluation, as transformers "
        "does. 0: none.",
        ge=0,
        le=1,
        usual=Usual(
            far=4,
            high=0.2,
            above=("no_learning", "divergence"),
            why="the loss can't fall below what is spread over the vocabulary",
            source="arXiv 1512.00567: 0.1",
        ),
    )
    completion_only_loss: bool | None = option(
        None, "Supervise the completion only. Not set: yes if rows have a prompt and a completion."
    )
    assistant_only_loss: bool = option(False, "Supervise the assistant's turns only. Needs conversational rows.")
    dataset_text_field: str = option("text", "Column that holds plain text.")

    def check(self) -> None:
        super().check()
        if self.loss_type == "dft" and self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor: has no effect on dft, whose weight is the label's own probability"
            )
        if self.assistant_only_loss and self.completion_only_loss:
            raise ConfigError(
                "assistant_only_loss and completion_only_loss can't both be set: a prompt-completion row whose "
                "completion is a list of messages takes completion_only_loss"
            )
