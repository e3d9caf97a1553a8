"""The rules of supervised fine-tuning, in addition to those of every run. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, lower_rate, short


def surprised(view: View) -> bool | None:
    """After the warm-up and 20 steps: loss should be near entropy for a model trained on texts. Where it comes nearer,
    what it expects is being unlearnt."""
    if view.step < 20 or not view.warmed_up or view.config.loss_type != "nll":
        return None
    apart = view.mean("loss", 20) - view.mean("entropy", 20)
    nearer = apart < 0.8 * (view.first("loss", 5) - view.first("entropy", 5)) and view.slope("loss", 20) < 0
    return view["loss"] > 2 * view["entropy"] + 0.5 and not nearer


RULES: list[Rule] = [
    Rule(
        code="SFT001",
        title="The model is confident in tokens other than the supervised ones",
        stage="train",
        symptom="divergence",
        level="policy",
        follows_from=("OPT003", "OPT004", "OPT006", "OPT007", "PRB005"),
        needs=("loss", "entropy"),
        test=surprised,
        share=0.6,
        message=lambda view: (
            f"The loss is {short(view.mean('loss', 20))} nats a token and the entropy"
            f" {short(view.mean('entropy', 20))}: the model expects other tokens than the supervised ones."
        ),
        remedies=lambda view: [Remedy(why="Check the supervised tokens: ft-host data sft"), lower_rate(view, 3)],
        when=(
            "After 20 steps, loss is above twice the entropy and 0.5 in 60 % of the last 50 steps, and doesn't come"
            " nearer to it."
        ),
        why=(
            "Labels that don't belong to their texts, a chat template or tokenizer that isn't the model's, or updates"
            " so large that the model is confident in nonsense."
        ),
        remedy="Check the rows; lower learning_rate.",
        source="own judgement: loss is entropy where a model is calibrated",
    )
]


@hookimpl
def ft_rules():
    return RULES
