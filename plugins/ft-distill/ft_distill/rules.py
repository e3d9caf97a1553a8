"""The rules of distill and gkd: their own, and from DIS100 on those of all rollouts that apply to them.

DIS001, a teacher with another vocabulary, is refused before anything is loaded. Imports no torch.
"""

from __future__ import annotations

import math

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Names,
    Remedy,
    Rule,
    View,
    percent,
    rollout_rules,
    set_field,
    short,
    taught_rules,
    watched_rules,
)

MASS = "distillation/teacher_top_k_mass"
UNSURE, TOKENS = "distillation/teacher_entropy", "model/vocab_size"
NAMES = Names(letters="DIS", first=100, grouped=False)

# ---------------------------------------------------------------- 3 and 5: what the teacher says


def unsure(view: View) -> bool | None:
    """A temperature far above 1 has this effect on any teacher."""
    return None if view.config.temperature > 1.5 else view[UNSURE] > 0.85 * math.log(view[TOKENS])


def higher_top_k(view: View) -> list[Remedy]:
    now = view.config.loss_top_k
    return set_field(view, "loss_top_k", 4 * now, again=True) if now else []


# ---------------------------------------------------------------- 117: something else is learnt


def mends(view: View) -> list[Remedy]:
    return [Remedy(why="Evaluate the teacher alone on held-out prompts: is it better than the student?")]


OWN = [
    Rule(
        code="DIS003",
        title="The teacher's likeliest tokens don't hold most of its probability",
        stage="train",
        level="signal",
        needs=(MASS,),
        share=0.5,
        least=5,
        test=lambda view: view[MASS] < 0.9,
        message=lambda view: (
            f"The {view.config.loss_top_k} tokens that the teacher was asked for hold"
            f" {percent(view.mean(MASS, view.window))} of its probability: the student isn't taught the rest."
        ),
        remedies=higher_top_k,
        when="They hold less than 90 % on average in half of the last 50 rollouts.",
        why=(
            "All other tokens count as one event, or not at all, so the student doesn't learn which of them the teacher"
            " prefers."
        ),
        remedy="Raise loss_top_k.",
        source="own judgement of the threshold",
    ),
    Rule(
        code="DIS005",
        title="The teacher's distribution is nearly uniform",
        stage="train",
        level="signal",
        mutes=("DIS105", "DIS108", "DIS115", "DIS117", "OPT014", "standstill"),
        needs=(UNSURE, TOKENS),
        share=0.8,
        least=5,
        test=unsure,
        message=lambda view: (
            f"The entropy of the teacher is {short(view.mean(UNSURE, view.window))} nats a token, of "
            f"{short(math.log(view[TOKENS]))} if all {view[TOKENS]} tokens were equally likely: is it trained?"
        ),
        remedies=lambda view: [
            Remedy(
                why=("Check that teacher_model_name_or_path is the intended model, and complete some prompts with it")
            )
        ],
        when=(
            "Its entropy is above 85 % of that of a uniform distribution in 80 % of the last 50 steps. Not at a"
            " temperature above 1.5."
        ),
        why=(
            "The weights were never trained, or don't belong to the tokenizer: the student approaches them"
            " without learning anything."
        ),
        remedy="The right teacher_model_name_or_path.",
        source="own judgement",
    ),
]

# Rewards are only logged here: rules about learning from them are left out, and so is a falling entropy, which is
# what a confident teacher teaches.
SHARED = ("DIS105", "DIS108", "DIS111", "DIS115")
RULES: list[Rule] = [
    *OWN,
    *taught_rules(NAMES, "DIS002", "DIS004", "nats a token"),
    *(rule for rule in rollout_rules(NAMES) if rule.code in SHARED),
    *watched_rules(NAMES, mends),
]


@hookimpl
def ft_rules():
    return RULES
