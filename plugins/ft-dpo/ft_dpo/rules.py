"""The rules of DPO. Imports no torch.

Growing completion length (a known effect of DPO) can't be seen on given pairs, and has no rule.
"""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, Suspect, View, fall, lower_rate, percent, preference_rules, rows_of, short

NOT_ABOUT = {"PRB005": "the loss compares two completions, and isn't that of a token"}

ACCURACY, MARGINS = "rewards/accuracies", "rewards/margins"
SWAP = Remedy(why="Check some pairs, and rename the columns where they are swapped (dataset_columns)")


def look(view: View) -> int:
    """Steps that have forty pairs, and five at the least."""
    return max(5, -(-40 // rows_of(view)))


def saturated(view: View) -> bool | None:
    """Before a tenth of the run is over, or in its first 20 steps; of forty pairs at least, since a few are in the
    right order by chance."""
    early = view.step <= max(20, 0.1 * (view.total_steps or 0))
    count = look(view)
    return view.mean(ACCURACY, count) >= 0.99 if early and view.count(ACCURACY) >= count else None


def by_length(view: View) -> str:
    longer = view.get("data/chosen_longer")
    return "" if longer is None else f" (chosen ones are longer in {percent(longer)} of the pairs)"


def may_be_large(view: View) -> bool:
    """Whether updates are large enough to explain it; also where none has been measured."""
    return max(view.recent("update_ratio"), default=1.0) > 1e-3


def why_so_early(view: View) -> str:
    feature = f"a simple feature may separate chosen from rejected, such as format or length{by_length(view)}"
    return f"{feature}, or updates are large" if may_be_large(view) else feature


def held_out(view: View) -> float | None:
    """Return the last evaluation's share of pairs in the right order, or the mean of the last two, since there may be
    few pairs; None before the first update, when all are equal.
    """
    series = view.series.get(f"eval_{ACCURACY}")
    if series is None or series.steps[-1] == 0:
        return None
    after = [value for step, value in zip(series.steps, series.values, strict=True) if step > 0][-2:]
    return sum(after) / len(after)


def swapped(view: View) -> bool | None:
    """Training pairs are learnt, but contradict the held-out pairs or the reference.

    The reference found rejected completions far likelier, and chosen completions get less likely still.
    """
    if view.mean(ACCURACY, 10) < 0.6:
        return None
    other = held_out(view)
    if other is not None and other < 0.4:
        return True
    chosen, rejected = view.get("start/logps/chosen"), view.get("start/logps/rejected")
    if chosen is None or rejected is None:
        return False
    return chosen < 2.5 * rejected and rejected - chosen > 5 and fall(view) > 0.25 * abs(chosen)


def swapped_message(view: View) -> str:
    other = held_out(view)
    if other is not None and other < 0.4:
        contrast = f"and {percent(other)} of held-out ones"
        conclusion = "one of the two data sets may have chosen and rejected swapped, or they prefer different things"
    else:
        contrast = (
            "but the model initially found rejected completions far likelier"
            f" ({short(view['start/logps/rejected'])} nats, chosen {short(view['start/logps/chosen'])}), and chosen"
            f" ones have lost {short(fall(view))} nats since"
        )
        conclusion = "chosen and rejected may be swapped"
    return f"{percent(view.mean(ACCURACY, 10))} of the training pairs are in the right order, {contrast}: {conclusion}."


OWN = [
    Rule(
        code="DPO002",
        follows_from=("DATA008", "OPT007", "PRB001"),
        title="All pairs are in the right order very early",
        stage="train",
        symptom="saturation",
        level="notes",
        needs=(ACCURACY,),
        severity="info",
        test=saturated,
        window=5,
        least=2,
        share=0.6,
        message=lambda view: (
            f"{percent(view.mean(ACCURACY, look(view)))} of the pairs are in the right order after {view.step} steps:"
            f" {why_so_early(view)}."
        ),
        remedies=lambda view: [
            Remedy(why="Compare pairs side by side: ft-host data dpo"),
            *([lower_rate(view, 3)] if may_be_large(view) else []),
        ],
        when=(
            "rewards/accuracies is 0.99 or more over 5 steps, and 40 pairs, within the first tenth of the run (or its"
            " first 20 steps)."
        ),
        why="The model then learns that feature. On easy pairs this is harmless.",
        remedy="Check the pairs; balance lengths.",
        source="own judgement",
    ),
    Rule(
        code="DPO004",
        follows_from=("DATA021", "PRB001"),
        title="Chosen and rejected may be swapped",
        stage="train",
        level="signal",
        needs=(ACCURACY,),
        test=swapped,
        window=30,
        least=8,
        message=swapped_message,
        remedies=lambda view: [SWAP],
        mutes=("DPO001", "DPO005", "OPT009", "OPT010", "OPT014"),
        when=(
            "In 30 % of the last 30 steps training pairs are learnt (accuracy above 0.6), and fewer than 40 % of"
            " held-out ones are in the right order; or the reference found rejected completions 2.5 times as likely in"
            " log-probs, and chosen ones have since lost a quarter of theirs."
        ),
        why=(
            "DPO learns swapped pairs as easily as right ones: only other pairs, or the initial model,"
            " reveal it. Where chosen completions are much longer than rejected ones, check the pairs before"
            " acting on this."
        ),
        remedy="Swap the columns.",
        source="own judgement, on runs of swapped pairs",
    ),
    Rule(
        code="DPO005",
        follows_from=("OPT007", "PRB001"),
        title="Margins blow up",
        stage="train",
        symptom="saturation",
        level="policy",
        mutes=("DPO001",),
        needs=(MARGINS,),
        test=lambda view: view[MARGINS] > 10,
        window=30,
        least=10,
        message=lambda view: (
            f"The mean margin is {short(view[MARGINS])}, and was above 10 {view.often}; the loss is"
            f" {short(view.mean('loss', 10))}."
        ),
        remedies=lambda view: [
            lower_rate(view, 3),
            Remedy(why="Stop earlier: fewer num_train_epochs, or max_steps"),
            *(
                [
                    Remedy(
                        why="Set loss_type to ipo, from sigmoid: it has a target for the margin",
                        patch={"loss_type": ["ipo"]},
                        again=True,
                    )
                ]
                if view.config.loss_type == ["sigmoid"]
                else []
            ),
        ],
        when="rewards/margins is above 10 in 30 % of the last 30 steps.",
        why="The policy is far from the reference: its odds are e^10 times those of the reference.",
        remedy="Lower learning_rate, fewer steps, ipo.",
        source="TRL issue 1236 (margins of 15 to 23)",
    ),
]


def weights_of_losses(view: View) -> list[Suspect]:
    """loss_weights: not all 0."""
    weights = view.config.loss_weights
    if not weights or any(weights):
        return []
    return [
        Suspect(
            field="loss_weights",
            value=weights,
            usual="1 each",
            explains=("no_learning", "no_signal"),
            source="the definition of the loss",
            new=[],
            why="the loss is 0 whatever the pairs say",
            certain=True,
            distance=9.0,
        )
    ]


SUSPECTS = [weights_of_losses]
RULES: list[Rule] = [*OWN, *preference_rules("DPO", displacement=1, signal=3, wrong=7, imitation="sft")]


@hookimpl
def ft_rules():
    return RULES
