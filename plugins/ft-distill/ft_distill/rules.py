"""What a run of distill or gkd recognises by itself: its own troubles, and from DIS100 on those of all rollouts that are
about it. DIS001, a teacher with another vocabulary, is refused before anything is loaded. Imports no torch."""

from __future__ import annotations

import math

from ft_host import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, percent, rounded, short
from ft_host.diagnostics.rollouts import Names, judge, rollout_rules, watched_rules

DIVERGENCE, AGREEMENT = "distillation/divergence", "distillation/teacher_agreement"
MASS, LENGTH, CUT = "distillation/teacher_top_k_mass", "completions/mean_length", "completions/clipped_ratio"
UNSURE, TOKENS = "distillation/teacher_entropy", "model/vocab_size"
NAMES = Names(letters="DIS", first=100, grouped=False)

# ---------------------------------------------------------------- 2: nothing is learnt


def begun(view: View) -> float:
    """The divergence at the start: of the first steps, unless these have already made it larger."""
    return min(view.first(DIVERGENCE, 5), 1.1 * view.first(DIVERGENCE, 1))


def flat(view: View) -> bool | None:
    """From a fifth of the run on, and after 40 steps; a student that says what its teacher says has nothing to learn."""
    if view.count(DIVERGENCE) < 40 or not view.warmed_up or (view.progress is not None and view.progress < 0.2):
        return None
    if vars(view.config).get("lmbda", 1) > 0:
        # on completions that are the student's own the distance may stay while these become better
        better = judge.held_out_rises(view)
        if better or better is None:
            return False
    return view.mean(DIVERGENCE, 20) > 0.95 * begun(view) and view.mean(AGREEMENT, 20) < 0.95


def flat_remedies(view: View) -> list[Remedy]:
    rate = view.config.learning_rate
    if view.mean(DIVERGENCE, 20) > 1.5 * begun(view):
        return [judge.lower_rate(view, 3), judge.restore(view)]
    higher = rounded(3 * rate)
    out = [Remedy(
        why=f"Raise learning_rate from {short(rate)} to {short(higher)}", patch={"learning_rate": higher}, again=True,
        expected="a divergence that falls",
    )]  # fmt: skip
    share = vars(view.config).get("lmbda")
    if share:
        out += judge.set_field(view, "lmbda", rounded(share / 2), ": learn from more completions of others", again=True)
    return [*out, Remedy(why="Tune the student on the teacher's completions first (ft-host train sft, or gkd with lmbda 0)")]


# ---------------------------------------------------------------- 4: length


def shrunk(view: View) -> bool | None:
    begun = judge.start(view, LENGTH)
    if begun is None or view.step < 5:
        return None
    cut = judge.start(view, CUT) or 0.0  # they didn't end before: now they do
    return view[LENGTH] < 0.3 * begun and cut < 0.3 and judge.gained(view, NAMES) < 0.3


def shrunk_remedies(view: View) -> list[Remedy]:
    out = judge.set_field(view, "beta", 0.5, ": of what the teacher says nothing is lost then", again=True)
    if view.config.beta <= 0.5:
        out = judge.set_field(view, "beta", 0.0, ": of what the teacher says nothing is lost then", again=True)
    return [*out, judge.lower_rate(view, 3), Remedy(why="Look at the completions in samples.jsonl: what do the short ones say?")]


# ---------------------------------------------------------------- 3 and 5: what the teacher says


def unsure(view: View) -> bool | None:
    """A temperature far above 1 makes any teacher look so."""
    return None if view.config.temperature > 1.5 else view[UNSURE] > 0.85 * math.log(view[TOKENS])


def higher_top_k(view: View) -> list[Remedy]:
    now = view.config.loss_top_k
    return judge.set_field(view, "loss_top_k", 4 * now, again=True) if now else []


# ---------------------------------------------------------------- 117: something else is learnt


def mends(view: View) -> list[Remedy]:
    return [Remedy(why="Have the teacher answer held-out prompts (eval of it alone): does it do better than the student?")]


OWN = [
    Rule(
        code="DIS002", title="The student doesn't come nearer to its teacher", stage="train", needs=(DIVERGENCE, AGREEMENT),
        share=0.8, least=10, test=flat,
        severe=lambda view: view.mean(DIVERGENCE, 20) > 1.5 * begun(view),
        message=lambda view: (
            f"The divergence from the teacher is {short(view.mean(DIVERGENCE, 20))} nats a token, and was "
            f"{short(begun(view))} at the start; the two agree on the likeliest token in "
            f"{percent(view.mean(AGREEMENT, 20))} of places."
        ),
        remedies=flat_remedies,
        when="After a fifth of the run, and 40 steps, the mean divergence of 20 steps is above 95 % of that of the first 5 (of "
        "110 % of the first, where that is less), in 80 % of the last 50; the two differ in 5 % of places and more. Not while "
        "held-out completions earn more than at first. 50 % above it: an error.",
        why="Updates that are too small, or so large that they undo each other; or a student that samples what the teacher has "
        "nothing good to say about.",
        remedy="Another learning_rate, a smaller lmbda, tuning on the teacher's completions first.", source="own judgement",
    ),
    Rule(
        code="DIS003", title="The teacher's likeliest tokens are not most of what it says", stage="train", needs=(MASS,),
        share=0.5, least=5, test=lambda view: view[MASS] < 0.9,
        message=lambda view: (
            f"The {view.config.loss_top_k} tokens that the teacher was asked for hold {percent(view.mean(MASS, view.window))} "
            "of its probability: the student isn't taught what the rest is."
        ),
        remedies=higher_top_k,
        when="They hold less than 90 % on average in half of the last 50 rollouts.",
        why="All other tokens count as one event, or as none, so that nothing is learnt of which of them the teacher would say.",
        remedy="Raise loss_top_k.", source="own judgement of the threshold",
    ),
    Rule(
        code="DIS004", title="Completions have become very short", stage="train", needs=(LENGTH,), least=8, test=shrunk,
        message=lambda view: (
            f"The mean length of the policy's completions fell from {short(judge.start(view, LENGTH))} to "
            f"{short(view.mean(LENGTH, 10))} tokens: it may have found that saying little is never said wrongly."
        ),
        remedies=shrunk_remedies,
        when="The mean length is below 30 % of the first step's in 30 % of the last 50 rollouts, completions weren't cut short "
        "at the start, and no reward that is watched has risen.",
        why="The reverse KL is of what the student says: an early end is a place where it can agree with its teacher cheaply.",
        remedy="A beta nearer to 0, a lower learning_rate, looking at samples.", source="GKD 2306.13649; own threshold",
    ),
    Rule(
        code="DIS005", title="The teacher is sure of nothing", stage="train", needs=(UNSURE, TOKENS), share=0.8, least=5,
        test=unsure,
        message=lambda view: (
            f"The entropy of what the teacher says is {short(view.mean(UNSURE, view.window))} nats a token, of "
            f"{short(math.log(view[TOKENS]))} if all {view[TOKENS]} tokens were alike to it: are its weights trained?"
        ),
        remedies=lambda view: [
            Remedy(why="Look whether teacher_model_name_or_path is the model that is meant, and complete some prompts with it")
        ],
        when="Its entropy is above 85 % of that of a choice at random in 80 % of the last 50 steps. Not at a temperature above 1.5.",
        why="Weights that were never trained, or that don't belong to the tokenizer: the student comes nearer to them without "
        "learning anything.",
        remedy="The right teacher_model_name_or_path.", source="own judgement",
    ),
]  # fmt: skip

# Rewards are only watched here: what is about learning from them is left out, and so is a falling entropy, which is what a
# sure teacher teaches.
SHARED = ("DIS105", "DIS108", "DIS111", "DIS115")
RULES: list[Rule] = [
    *OWN, *(rule for rule in rollout_rules(NAMES) if rule.code in SHARED), *watched_rules(NAMES, mends)
]


@hookimpl
def ft_rules():
    return RULES
