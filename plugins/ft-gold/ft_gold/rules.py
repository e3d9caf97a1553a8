"""The rules of gold: its own, and from GOLD100 on those of all rollouts that apply to it. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Names,
    Remedy,
    Rule,
    View,
    percent,
    rollout_rules,
    set_field,
    taught_rules,
    watched_rules,
)

ALIGNED, MASS, UNSURE = "distillation/aligned_share", "distillation/matched_mass", "distillation/teacher_entropy_share"
NAMES = Names(letters="GOLD", first=100, grouped=False)

# ---------------------------------------------------------------- 2 and 3: what is compared


def align_remedies(view: View) -> list[Remedy]:
    return [
        Remedy(
            why=(
                "Check how the teacher's tokenizer encodes a completion: does it lower the case, or change characters?"
            )
        ),
        *set_field(
            view, "use_extended_uld", False, ": compare the first with the first, whatever they spell", again=True
        ),
    ]


def mass_remedies(view: View) -> list[Remedy]:
    if view.config.uld_hybrid_matched_weight is not None:
        return [Remedy(why="Raise uld_hybrid_unmatched_weight: most of the teacher's probability is in that part")]
    return [
        Remedy(
            why=(
                "Choose a student whose vocabulary is closer to its teacher's; sorted probabilities don't say"
                " which token is meant"
            )
        )
    ]


# ---------------------------------------------------------------- 5: a teacher that knows nothing


def knows_nothing(view: View) -> bool | None:
    """A temperature far above 1 has this effect on any teacher."""
    flattened = view.config.uld_teacher_temperature
    hot = view.config.temperature if flattened is None else flattened
    return None if hot > 1.5 else view[UNSURE] > 0.85


# ---------------------------------------------------------------- 117: something else is learnt


def mends(view: View) -> list[Remedy]:
    config, out = view.config, []
    if config.use_extended_uld and config.uld_token_merge_strategy != "text":
        out += set_field(
            view,
            "uld_token_merge_strategy",
            "text",
            f": {config.uld_token_merge_strategy} teaches to begin with the teacher's token where the student's is"
            " longer",
        )
    elif not config.uld_use_hybrid_loss:
        out += set_field(view, "uld_use_hybrid_loss", True, ": sorted probabilities don't say which token is meant")
    if not config.uld_crossentropy_weight and config.lmbda < 1:
        out += set_field(
            view, "uld_crossentropy_weight", 0.5, ", which holds the student to the text itself", again=True
        )
    return out


OWN = [
    Rule(
        code="GOLD002",
        title="Few tokens can be compared with the teacher",
        stage="train",
        level="signal",
        mutes=("GOLD115", "GOLD117", "OPT014"),
        needs=(ALIGNED,),
        share=0.5,
        least=5,
        test=lambda view: view[ALIGNED] < 0.5,
        message=lambda view: (
            f"Of the completions' tokens {percent(view.mean(ALIGNED, view.window))} spell what tokens of the teacher"
            " spell: the others aren't compared."
        ),
        remedies=align_remedies,
        when="Less than half of the tokens have a partner, in half of the last 50 steps.",
        why=(
            "The teacher's tokenizer normalises the text (its case, its characters), or the completions"
            " contain bytes that aren't text, or end-of-turn marks in the middle."
        ),
        remedy="Another teacher, use_extended_uld: false, a check of samples.",
        source="own judgement",
    ),
    Rule(
        code="GOLD003",
        title="Most of the teacher's probability is on tokens that the student lacks",
        stage="train",
        level="signal",
        mutes=("GOLD115", "GOLD117", "OPT014"),
        needs=(MASS,),
        share=0.5,
        least=5,
        test=lambda view: view[MASS] < 0.3,
        message=lambda view: (
            f"Tokens that both have hold {percent(view.mean(MASS, view.window))} of the teacher's probability: of the"
            " rest the student learns how confident the teacher is, but not in which token."
        ),
        remedies=mass_remedies,
        when="They hold less than 30 % of it on average, in half of the last 50 steps.",
        why=(
            "Tokens that only one of the two has are compared by their sorted probabilities, which hardly say which one"
            " is meant."
        ),
        remedy="A student with a closer vocabulary; uld_crossentropy_weight in addition.",
        source="own judgement",
    ),
    Rule(
        code="GOLD005",
        title="The teacher's distribution is nearly uniform",
        stage="train",
        level="signal",
        mutes=("GOLD105", "GOLD108", "GOLD115", "GOLD117", "OPT014", "standstill"),
        needs=(UNSURE,),
        share=0.8,
        least=5,
        test=knows_nothing,
        message=lambda view: (
            f"The entropy of the teacher is {percent(view.mean(UNSURE, view.window))} of what it would be if all of its"
            " tokens were equally likely: is it trained?"
        ),
        remedies=lambda view: [
            Remedy(why="Check that teacher_model_name_or_path is the intended model, and complete some prompts with it")
        ],
        when=(
            "Its entropy is above 85 % of that of a uniform distribution in 80 % of the last 50 steps. Not at a"
            " teacher_temperature above 1.5."
        ),
        why=(
            "The weights were never trained, or don't belong to the tokenizer: the student approaches them without"
            " learning anything."
        ),
        remedy="The right teacher_model_name_or_path.",
        source="own judgement",
    ),
]

# Rewards are only watched here: what is about learning from them is left out, and so is a falling entropy, which is
# what a sure teacher teaches.
SHARED = ("GOLD105", "GOLD108", "GOLD111", "GOLD115")
RULES: list[Rule] = [
    *OWN,
    *taught_rules(NAMES, "GOLD001", "GOLD004", "a unit of text"),
    *(rule for rule in rollout_rules(NAMES) if rule.code in SHARED),
    *watched_rules(NAMES, mends),
]


@hookimpl
def ft_rules():
    return RULES
