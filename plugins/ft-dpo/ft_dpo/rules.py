"""What a DPO run recognises by itself. Imports no torch.

How much longer a policy's completions have become (a known habit of DPO) can't be seen on given pairs, and has no rule.
"""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, fall, lower_rate, percent, preference_rules, short

NOT_ABOUT = {"PRB005": "the loss compares two completions, and isn't that of a token"}

ACCURACY, MARGINS = "rewards/accuracies", "rewards/margins"
SWAP = Remedy(why="Look at some pairs, and rename the columns where they are swapped (dataset_columns)")


def saturated(view: View) -> bool | None:
    """Before a tenth of the run is over, or in its first 20 steps."""
    early = view.step <= max(20, 0.1 * (view.total_steps or 0))
    return view.mean(ACCURACY, 5) >= 0.99 if early and view.count(ACCURACY) >= 5 else None


def held_out(view: View) -> float | None:
    """The last evaluation's share of pairs in the right order; None before the first update, when all are equal."""
    series = view.series.get(f"eval_{ACCURACY}")
    return None if series is None or series.steps[-1] == 0 else series.last


def swapped(view: View) -> bool | None:
    """What is trained on is learnt, and is the opposite of what else is known: of held-out pairs, or of the reference,
    which found what is called rejected far likelier, while chosen completions grow less likely still."""
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
        told = f"and {percent(other)} of held-out ones"
        said = "one of the two data sets has chosen and rejected swapped"
    else:
        told = (
            "but the model began by finding what is called rejected far likelier"
            f" ({short(view['start/logps/rejected'])} nats, chosen {short(view['start/logps/chosen'])}), and chosen"
            f" ones have lost {short(fall(view))} nats since"
        )
        said = "chosen and rejected may be swapped"
    return f"{percent(view.mean(ACCURACY, 10))} of the training pairs are in the right order, {told}: {said}."


OWN = [
    Rule(
        code="DPO002",
        follows_from=("PRB001",),
        title="All pairs are in the right order at once",
        stage="train",
        needs=(ACCURACY,),
        severity="info",
        test=saturated,
        window=5,
        least=2,
        share=0.6,
        message=lambda view: (
            f"{percent(view.mean(ACCURACY, 5))} of the pairs are in the right order after {view.step} steps: something "
            "simple tells chosen from rejected, such as length or format."
        ),
        remedies=lambda view: [Remedy(why="Look at pairs side by side: ft-host data dpo"), lower_rate(view, 3)],
        when=(
            "rewards/accuracies is 0.99 or more over 5 steps within the first tenth of the run (or its first 20 steps)."
        ),
        why="What is learnt is then that simple thing. On easy pairs it is no trouble.",
        remedy="Look at the pairs; balance lengths.",
        source="own judgement",
    ),
    Rule(
        code="DPO004",
        follows_from=("PRB001",),
        title="Chosen and rejected may be swapped",
        stage="train",
        needs=(ACCURACY,),
        test=swapped,
        window=30,
        least=8,
        message=swapped_message,
        remedies=lambda view: [SWAP],
        mutes=("DPO001", "OPT009", "OPT010", "OPT014"),
        when=(
            "In 30 % of the last 30 steps training pairs are learnt (accuracy above 0.6), and fewer than 40 % of"
            " held-out ones are in the right order; or the reference found rejected completions 2.5 times as likely in"
            " log-probs, and chosen ones have since lost a quarter of theirs."
        ),
        why=(
            "DPO learns swapped pairs as happily as right ones: only pairs from elsewhere, or what the model began"
            " with, tell. Where chosen completions are much longer than rejected ones, look at the pairs before"
            " believing it."
        ),
        remedy="Swap the columns.",
        source="own judgement, on runs of swapped pairs",
    ),
    Rule(
        code="DPO005",
        follows_from=("PRB001",),
        title="Margins blow up",
        stage="train",
        needs=(MARGINS,),
        test=lambda view: view[MARGINS] > 10,
        window=30,
        least=10,
        message=lambda view: (
            f"The mean margin is {short(view.mean(MARGINS, 10))}: the loss has long been next to 0, and what still"
            " moves the weights are single pairs."
        ),
        remedies=lambda view: [
            lower_rate(view, 3),
            Remedy(why="Stop earlier: fewer num_train_epochs, or max_steps"),
            *(
                [
                    Remedy(
                        why="Set loss_type to ipo, from sigmoid, which wants a margin and no more",
                        patch={"loss_type": ["ipo"]},
                        again=True,
                    )
                ]
                if view.config.loss_type == ["sigmoid"]
                else []
            ),
        ],
        when="rewards/margins is above 10 in 30 % of the last 30 steps.",
        why="The policy is far from the reference: e^10 times as sure of its order.",
        remedy="Lower learning_rate, fewer steps, ipo.",
        source="TRL issue 1236 (margins of 15 to 23)",
    ),
]

RULES: list[Rule] = [*OWN, *preference_rules("DPO", displacement=1, signal=3, wrong=7, imitation="sft")]


@hookimpl
def ft_rules():
    return RULES
