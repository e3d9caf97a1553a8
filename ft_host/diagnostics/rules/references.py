"""Is the reference the policy that a run begins with? Of methods that learn from preferences. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, short

LN2 = math.log(2)
# What a loss of a pair comes to where both log-ratios are 0, whatever its other options. Others depend on them.
AT_START = {
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "robust": LN2,
    "aot": LN2,
    "aot_unpaired": LN2,
    "bco_pair": 2 * LN2,
    "nca_pair": 2 * LN2,
    "hinge": 1.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
}


def expected(view: View) -> float | None:
    """The loss of the first step, where it follows from the config; None where it doesn't."""
    config = vars(view.config)
    kinds = config.get("loss_type")
    if not isinstance(kinds, list) or config.get("use_weighting") or not all(kind in AT_START for kind in kinds):
        return None
    weights = config.get("loss_weights") or [1.0] * len(kinds)
    return sum(weight * AT_START[kind] for weight, kind in zip(weights, kinds, strict=True))


def differs(view: View) -> bool:
    right = expected(view)
    far = max(abs(view["start/rewards/chosen"]), abs(view.get("start/rewards/rejected", 0.0)))
    return far > 0.1 or (right is not None and abs(view["start/loss"] - right) > 0.01)


def message(view: View) -> str:
    right = expected(view)
    should = "" if right is None else f", which should be {right:.4f}"
    return (
        f"Before the first update the loss is {view['start/loss']:.4f}{should}, and the rewards are"
        f" {short(view['start/rewards/chosen'])} (chosen) and {short(view.get('start/rewards/rejected', 0.0))}"
        " (rejected), which should be 0: the reference has other weights than the policy, or dropout or another"
        " precision sets them apart."
    )


def remedies(view: View) -> list[Remedy]:
    config, out = vars(view.config), []
    if config.get("ref_model"):
        out.append(
            Remedy(
                why="Leave ref_model out: the reference is then the model as the run finds it",
                patch={"ref_model": None},
                again=True,
            )
        )
    if not config["disable_dropout"]:
        out.append(Remedy(why="Set disable_dropout", patch={"disable_dropout": True}, again=True))
    return out or [Remedy(why="See whether policy and reference have the same weights, precision and adapter")]


RULES = [
    Rule(
        code="PRB001",
        title="The reference isn't the policy that training begins with",
        stage="probe",
        level="models",
        needs=("model/reference", "start/loss", "start/rewards/chosen"),
        fields=("beta",),
        test=differs,
        message=message,
        remedies=remedies,
        mutes=("PRB005", "OPT005", "OPT014"),
        when=(
            "In the first step of a run with a reference a reward is further than 0.1 from 0, or the loss further than"
            " 0.01 from what it must be where policy and reference are equal (0.6931 for sigmoid, 1 for hinge)."
        ),
        why=(
            "Rewards are measured from the reference: from another one, from dropout or from another precision they"
            " begin with noise that has nothing to do with preferences."
        ),
        remedy="Set disable_dropout; leave ref_model out; the same precision for both.",
        source="the definition of the loss (2305.18290)",
    )
]
