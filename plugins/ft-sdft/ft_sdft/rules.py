"""The rules of SDFT: its own, and from SDFT100 on those of all rollouts that apply to it. Imports no torch."""

from __future__ import annotations

import math

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Names,
    Remedy,
    Rule,
    Suspect,
    View,
    broken_by,
    lower_rate,
    percent,
    restore,
    rollout_rules,
    set_field,
    short,
    watched_rules,
    went,
)

EMPTY, NOTHING = "self_distillation/empty_context_fraction", "self_distillation/without_loss_fraction"
APART = "self_distillation/teacher_logp_difference"
ALIKE = 0.01  # nats of a token, on average
NAMES = Names(letters="SDFT", first=100)
EARLY = 20  # steps in which a student hasn't yet learnt from its teacher


def teaches_nothing(view: View) -> bool | None:
    return view[APART] < ALIKE if view.step <= EARLY else None


def drifts(view: View) -> bool | None:
    base = view.baseline(APART)
    return None if base is None or view.step < 25 else view[APART] > max(3 * base, 0.1)


def held_remedies(view: View) -> list[Remedy]:
    if view.config.teacher_model_kind == "base":
        return []
    return set_field(view, "teacher_model_kind", "base", ", a teacher that stays", again=True)


def drift_remedies(view: View) -> list[Remedy]:
    out = [lower_rate(view, 3)]
    if view.config.teacher_model_kind != "base":
        out += set_field(view, "teacher_model_kind", "base", ", a teacher that stays", again=True)
    if view.config.distillation_mode == "sampled_token":
        out += [
            Remedy(
                why="Compare distributions instead of sampled tokens (distillation_mode topk_logits)",
                patch={"distillation_mode": "topk_logits"},
                again=True,
            )
        ]
    return [*out, restore(view)]


def skip_less(view: View) -> list[Remedy]:
    """A quarter of it, and of the mean length of completions at most."""
    now, length = view.config.num_loss_tokens_to_skip, view.mean("completions/mean_length")
    new = now // 4 if math.isnan(length) else min(now // 4, int(length) // 4)
    return set_field(view, "num_loss_tokens_to_skip", new, again=True)


OWN = [
    Rule(
        code="SDFT001",
        title="The teacher has no demonstration",
        stage="train",
        level="signal",
        needs=(EMPTY,),
        least=1,
        share=0.3,
        mutes=("SDFT002", "standstill"),
        test=lambda view: view[EMPTY] > 0.1,
        severe=lambda view: view.mean(EMPTY, view.window) > 0.5,
        message=lambda view: (
            f"In {percent(view.mean(EMPTY, view.window))} of the rows of the last {view.window} rollouts"
            " privileged_context is empty: for these the teacher knows no more than the student."
        ),
        remedies=lambda view: [
            Remedy(why="Put the demonstration into the column privileged_context, or leave such rows out")
        ],
        when=(
            "The text in privileged_context is blank in more than 10 % of a rollout's rows, in 30 % of the last 50; 50"
            " % on average: an error."
        ),
        why="The demonstration is the teacher's only advantage over its student.",
        remedy="Fill the column, or leave the rows out.",
        source="own judgement",
    ),
    Rule(
        code="SDFT002",
        title="The teacher agrees with the student",
        stage="train",
        symptom="no_signal",
        level="signal",
        mutes=("standstill",),
        needs=(APART,),
        window=10,
        least=3,
        share=0.8,
        test=teaches_nothing,
        message=lambda view: (
            f"From the start the teacher's log-prob of a sampled token is {short(view.mean(APART, view.window))} nats"
            " from the student's, on average: the demonstration changes that little of what it says."
        ),
        remedies=lambda view: [
            Remedy(why="Explain the demonstration in teacher_prompt_template, and ask for an answer of its kind"),
            Remedy(why="Check a teacher's prompt: does privileged_context have what the student lacks?"),
        ],
        when="self_distillation/teacher_logp_difference is below 0.01 in most of the first 20 steps.",
        why="A model that can't use a demonstration, or isn't asked to, is no better with it than without.",
        remedy="Another template, more informative demonstrations, a larger model.",
        source="own judgement of the threshold",
    ),
    Rule(
        code="SDFT003",
        title="Student and teacher move apart",
        stage="train",
        symptom="divergence",
        level="policy",
        follows_from=broken_by(NAMES, 10),
        mutes=("SDFT115", "SDFT117", "OPT014"),
        needs=(APART,),
        least=10,
        test=drifts,
        message=lambda view: (
            "The distance of the teacher's log-prob of a sampled token from the student's"
            f" {went(view.baseline(APART) or 0.0, view[APART])} nats."
        ),
        remedies=drift_remedies,
        when=(
            "self_distillation/teacher_logp_difference is above 0.1 and three times its beginning in 30 % of the last"
            " 50 steps."
        ),
        why="Updates are too large, or the teacher follows its student in the wrong direction.",
        remedy="Lower learning_rate, teacher_model_kind base, go back to a checkpoint.",
        source="own judgement of the threshold",
    ),
    Rule(
        code="SDFT004",
        title="Completions end before their loss begins",
        stage="train",
        level="signal",
        later=("notes", lambda view: view.mean(NOTHING, view.window) <= 0.5),
        # where only what goes on is learnt from, completions go on, and earn less
        mutes=("standstill", "SDFT002", "SDFT003", "SDFT108", "OPT014"),
        needs=(NOTHING,),
        least=5,
        test=lambda view: view[NOTHING] > 0.3,
        severe=lambda view: view.mean(NOTHING, view.window) > 0.8,
        message=lambda view: (
            f"{percent(view.mean(NOTHING, view.window))} of completions have no more than num_loss_tokens_to_skip "
            f"{view.config.num_loss_tokens_to_skip} tokens: nothing is learnt from them."
        ),
        remedies=skip_less,
        when=(
            "More than 30 % of completions are without a token in the loss in 30 % of the last 50 rollouts; 80 % on"
            " average: an error."
        ),
        why="The skipped tokens should be an opening phrase, not the answer.",
        remedy="Lower num_loss_tokens_to_skip.",
        source="own judgement",
    ),
]


def skipped_tokens(view: View) -> list[Suspect]:
    """num_loss_tokens_to_skip: at most half of max_completion_length."""
    skipped, longest = view.config.num_loss_tokens_to_skip, view.config.max_completion_length
    if skipped <= longest / 2:
        return []
    return [
        Suspect(
            field="num_loss_tokens_to_skip",
            value=skipped,
            usual=f"at most half of max_completion_length, {longest}",
            explains=("no_learning", "no_signal"),
            source="own judgement",
            new=0,
            why="little of a completion is learnt from",
            distance=0.3,
        )
    ]


SUSPECTS = [skipped_tokens]

# Rewards are only logged here: rules about learning from them are left out.
SHARED = ("SDFT104", "SDFT105", "SDFT108", "SDFT110", "SDFT111", "SDFT115")
RULES: list[Rule] = [
    *OWN,
    *(rule for rule in rollout_rules(NAMES) if rule.code in SHARED),
    *watched_rules(NAMES, held_remedies),
]


@hookimpl
def ft_rules():
    return RULES
