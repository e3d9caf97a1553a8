"""What a run of supervised fine-tuning recognises by itself, beside what every run does. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, lower_rate, short


def surprised(view: View) -> bool | None:
    """After the warm-up and 20 steps: a model that is trained on texts is about as sure as it is right."""
    if view.step < 20 or not view.warmed_up or view.config.loss_type != "nll":
        return None
    return view["loss"] > 2 * view["entropy"] + 0.5


RULES: list[Rule] = [
    Rule(
        code="SFT001",
        title="The model is sure of other tokens than those it is taught",
        stage="train",
        needs=("loss", "entropy"),
        test=surprised,
        share=0.6,
        message=lambda view: (
            f"The loss is {short(view.mean('loss', 20))} nats a token and the entropy"
            f" {short(view.mean('entropy', 20))}: the model expects something else than the supervised tokens, and"
            " doesn't come to doubt it."
        ),
        remedies=lambda view: [Remedy(why="Look at what is supervised: ft-host data sft"), lower_rate(view, 3)],
        when="After 20 steps, loss is above twice the entropy and 0.5 in 60 % of the last 50 steps.",
        why=(
            "Labels that don't belong to their texts, another chat template or tokenizer than the model's, or updates"
            " so large that the model is sure of nonsense."
        ),
        remedy="Look at the rows; lower learning_rate.",
        source="own judgement: loss is entropy where a model is calibrated",
    )
]


@hookimpl
def ft_rules():
    return RULES
