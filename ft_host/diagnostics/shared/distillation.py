"""Rules for methods that learn from a teacher, on completions some of which are the student's own. Imports no torch."""

from __future__ import annotations

import math

from ft_host.diagnostics.remedies import lower_rate, raise_rate, restore, set_field
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import helpers
from ft_host.diagnostics.shared.helpers import Names
from ft_host.diagnostics.sizes import USUAL, update_at_full_rate
from ft_host.diagnostics.spread import fallen, scatter
from ft_host.diagnostics.view import View, percent, rounded, went

DIVERGENCE, AGREEMENT = "distillation/divergence", "distillation/teacher_agreement"
LENGTH, CUT = "completions/mean_length", "completions/clipped_ratio"

# ---------------------------------------------------------------- nothing is learnt


def first_divergence(view: View) -> float:
    """The divergence at the start: of the first steps, unless these have already made it larger."""
    return min(view.first(DIVERGENCE, 5), 1.1 * view.first(DIVERGENCE, 1))


def flat(view: View) -> bool | None:
    """From a fifth of the run on, and after 40 steps; a student that says what its teacher says has nothing to learn,
    and on completions that are its own the divergence may stay while these become better."""
    if view.count(DIVERGENCE) < 40 or not view.warmed_up or (view.progress is not None and view.progress < 0.2):
        return None
    if vars(view.config).get("lmbda", 1) > 0:
        better = helpers.held_out_rises(view)
        if better or better is None:
            return False
    if view.count(AGREEMENT) >= 20 and view.mean(AGREEMENT, 20) >= 0.95:
        return False
    first, last = view.opening(DIVERGENCE, 10), view.recent(DIVERGENCE, 20)
    begun = first_divergence(view)
    sure = farther(view) or scatter(last) * math.sqrt(1 / 10 + 1 / 20) < 0.05 * abs(begun)
    return view.mean(DIVERGENCE, 20) > 0.95 * begun and sure and not fallen(first, last, 2.0)


def farther(view: View) -> bool:
    """Half as much again, beyond doubt."""
    begun, now = first_divergence(view), view.mean(DIVERGENCE, 20)
    return now > 1.5 * begun and now - begun > 3 * scatter(view.recent(DIVERGENCE, 20))


def is_flat(view: View) -> bool:
    return not farther(view)


def flat_remedies(view: View) -> list[Remedy]:
    if farther(view):
        return [lower_rate(view, 3), restore(view)]
    ratio = update_at_full_rate(view)
    out = [raise_rate(view, 3, "a divergence that falls")] if ratio is None or ratio < USUAL else []
    share = vars(view.config).get("lmbda")
    if share:
        out += set_field(view, "lmbda", rounded(share / 2), ": learn from more completions of others", again=True)
    return [
        *out,
        Remedy(why="Tune the student on the teacher's completions first (supervised fine-tuning, or lmbda 0)"),
    ]


def flat_message(view: View, unit: str) -> str:
    said = f"The divergence from the teacher {went(first_divergence(view), view.mean(DIVERGENCE, 20))} {unit}"
    if not view.count(AGREEMENT):
        return f"{said}."
    return f"{said}; the two agree on the likeliest token in {percent(view.mean(AGREEMENT, 20))} of places."


# ---------------------------------------------------------------- length


def shrunk_remedies(view: View) -> list[Remedy]:
    beta = 0.5 if view.config.beta > 0.5 else 0.0
    out = set_field(view, "beta", beta, ": of what the teacher says nothing is lost then", again=True)
    return [
        *out,
        lower_rate(view, 3),
        Remedy(why="Look at the completions in samples.jsonl: what do the short ones say?"),
    ]


def taught_rules(names: Names, nearer: str, brief: str, unit: str) -> list[Rule]:
    """`nearer` and `brief`: the codes of the two. `unit`: what the divergence is counted in."""

    def shrunk(view: View) -> bool | None:
        start = helpers.start(view, LENGTH)
        if start is None or view.step < 5:
            return None
        cut = helpers.start(view, CUT) or 0.0  # they didn't end before: now they do
        return view[LENGTH] < 0.3 * start and cut < 0.3 and helpers.gained(view, names) < 0.3

    return [
        Rule(
            code=nearer,
            family="teachers-01",
            title="The student doesn't come nearer to its teacher",
            stage="train",
            symptom=lambda view: "divergence" if farther(view) else "no_learning",
            level="policy",
            follows_from=helpers.broken_by(names, 10),
            mutes=("OPT005", "OPT014", names.code(15), names.code(17)),
            later=("standstill", is_flat),
            needs=(DIVERGENCE,),
            share=0.8,
            least=10,
            test=flat,
            severe=farther,
            message=lambda view: flat_message(view, unit),
            remedies=flat_remedies,
            when=(
                "After a fifth of the run, and 40 steps, the mean divergence of 20 steps is above 95 % of that of the"
                " first 5 (of 110 % of the first, where that is less), in 80 % of the last 50; the two don't agree on"
                " the likeliest token in 95 % of places, and batches differ by so little that a fall would be seen (the"
                " standard error is below 5 %). Not while held-out completions earn more than at first. 50 % above it,"
                " by three times what batches differ: an error."
            ),
            why=(
                "Updates that are too small, or so large that they undo each other; or a student that samples what the"
                " teacher has nothing good to say about."
            ),
            remedy="Another learning_rate, a smaller lmbda, tuning on the teacher's completions first.",
            source="own judgement",
        ),
        Rule(
            code=brief,
            family="teachers-02",
            title="Completions have become very short",
            stage="train",
            symptom="forgetting",
            level="policy",
            follows_from=helpers.broken_by(names, 10),
            mutes=("OPT014", names.code(15), names.code(17)),
            needs=(LENGTH,),
            least=8,
            test=shrunk,
            message=lambda view: (
                f"The mean length of the policy's completions {went(helpers.start(view, LENGTH) or 0.0, view[LENGTH])}"
                " tokens: it may have found that an early end is cheap."
            ),
            remedies=shrunk_remedies,
            when=(
                "The mean length is below 30 % of the first step's in 30 % of the last 50 rollouts, completions weren't"
                " cut short at the start, and no reward that is watched has risen."
            ),
            why=(
                "The reverse KL is of what the student says: an early end is a place where it can agree with its"
                " teacher cheaply."
            ),
            remedy="A beta nearer to 0, a lower learning_rate, looking at samples.",
            source="GKD 2306.13649; own threshold",
        ),
    ]
