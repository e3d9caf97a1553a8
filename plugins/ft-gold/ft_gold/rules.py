"""What a run of gold recognises by itself: its own troubles, and from GOLD100 on those of all rollouts that are about it.
Imports no torch."""

from __future__ import annotations

from ft_host import hookimpl
from ft_host.diagnostics import Remedy, Rule, View, percent, rounded, short
from ft_host.diagnostics.rollouts import Names, judge, rollout_rules, watched_rules

DIVERGENCE, AGREEMENT = "distillation/divergence", "distillation/teacher_agreement"
ALIGNED, MASS = "distillation/aligned_share", "distillation/matched_mass"
LENGTH, CUT = "completions/mean_length", "completions/clipped_ratio"
NAMES = Names(letters="GOLD", first=100, grouped=False)

# ---------------------------------------------------------------- 1: nothing is learnt


def begun(view: View) -> float:
    """The distance at the start: of the first steps, unless these have already made it larger."""
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
    there = view.count(AGREEMENT) >= 20 and view.mean(AGREEMENT, 20) >= 0.95
    return view.mean(DIVERGENCE, 20) > 0.95 * begun(view) and not there


def flat_remedies(view: View) -> list[Remedy]:
    rate = view.config.learning_rate
    if view.mean(DIVERGENCE, 20) > 1.5 * begun(view):
        return [judge.lower_rate(view, 3), judge.restore(view)]
    higher = rounded(3 * rate)
    out = [Remedy(
        why=f"Raise learning_rate from {short(rate)} to {short(higher)}", patch={"learning_rate": higher}, again=True,
        expected="a divergence that falls",
    )]  # fmt: skip
    if view.config.lmbda:
        share = rounded(view.config.lmbda / 2)
        out += judge.set_field(view, "lmbda", share, ": learn from more completions of others", again=True)
    return [*out, Remedy(why="Tune the student on the teacher's completions first (ft-host train sft, or gold with lmbda 0)")]


# ---------------------------------------------------------------- 2 and 3: what is compared


def align_remedies(view: View) -> list[Remedy]:
    return [
        Remedy(why="Look at what the teacher's tokenizer makes of a completion: does it lower its letters, or change characters?"),
        *judge.set_field(view, "use_extended_uld", False, ": compare the first with the first, whatever they spell", again=True),
    ]


def mass_remedies(view: View) -> list[Remedy]:
    if view.config.uld_hybrid_matched_weight is not None:
        return [Remedy(why="Raise uld_hybrid_unmatched_weight: what the teacher says is in that part")]
    return [Remedy(why="Choose a student whose vocabulary is nearer to its teacher's; sorted probabilities teach little of what")]


# ---------------------------------------------------------------- 4: length


def shrunk(view: View) -> bool | None:
    begun = judge.start(view, LENGTH)
    if begun is None or view.step < 5:
        return None
    cut = judge.start(view, CUT) or 0.0  # they didn't end before: now they do
    return view[LENGTH] < 0.3 * begun and cut < 0.3 and judge.gained(view, NAMES) < 0.3


def shrunk_remedies(view: View) -> list[Remedy]:
    beta = 0.5 if view.config.beta > 0.5 else 0.0
    out = judge.set_field(view, "beta", beta, ": of what the teacher says nothing is lost then", again=True)
    return [*out, judge.lower_rate(view, 3), Remedy(why="Look at the completions in samples.jsonl: what do the short ones say?")]


# ---------------------------------------------------------------- 117: something else is learnt


def mends(view: View) -> list[Remedy]:
    config, out = view.config, []
    if config.use_extended_uld and config.uld_token_merge_strategy != "text":
        out += judge.set_field(
            view, "uld_token_merge_strategy", "text",
            f": {config.uld_token_merge_strategy} teaches to begin with the teacher's token where the student's is longer",
        )  # fmt: skip
    elif not config.uld_use_hybrid_loss:
        out += judge.set_field(view, "uld_use_hybrid_loss", True, ": sorted probabilities don't say which token is meant")
    if not config.uld_crossentropy_weight and config.lmbda < 1:
        out += judge.set_field(view, "uld_crossentropy_weight", 0.5, ", which holds the student to the text itself", again=True)
    return out


OWN = [
    Rule(
        code="GOLD001", title="The student doesn't come nearer to its teacher", stage="train", needs=(DIVERGENCE,),
        share=0.8, least=10, test=flat,
        severe=lambda view: view.mean(DIVERGENCE, 20) > 1.5 * begun(view),
        message=lambda view: (
            f"The distance from the teacher is {short(view.mean(DIVERGENCE, 20))} a unit of text, and was "
            f"{short(begun(view))} at the start."
        ),
        remedies=flat_remedies,
        when="After a fifth of the run, and 40 steps, the mean distance of 20 steps is above 95 % of that of the first 5 (of "
        "110 % of the first, where that is less), in 80 % of the last 50; the two don't agree on the likeliest token in 95 % of places. Not while held-out completions earn "
        "more than at first. 50 % above it: an error.",
        why="Updates that are too small, or so large that they undo each other; or a student that samples what the teacher has "
        "nothing good to say about.",
        remedy="Another learning_rate, a smaller lmbda, tuning on the teacher's completions first.", source="own judgement",
    ),
    Rule(
        code="GOLD002", title="Little of the completions can be compared with the teacher", stage="train", needs=(ALIGNED,),
        share=0.5, least=5, test=lambda view: view[ALIGNED] < 0.5,
        message=lambda view: (
            f"Of the completions' tokens {percent(view.mean(ALIGNED, view.window))} spell what tokens of the teacher spell: the "
            "others are in no comparison."
        ),
        remedies=align_remedies,
        when="Less than half of the tokens have a partner, in half of the last 50 steps.",
        why="The teacher's tokenizer changes the text before it reads it (its case, its characters), or the completions are bytes "
        "that are no text, or marks of turns in the middle.",
        remedy="Another teacher, use_extended_uld: false, looking at samples.", source="own judgement",
    ),
    Rule(
        code="GOLD003", title="Most of what the teacher says are tokens that the student hasn't", stage="train", needs=(MASS,),
        share=0.5, least=5, test=lambda view: view[MASS] < 0.3,
        message=lambda view: (
            f"Tokens that both have hold {percent(view.mean(MASS, view.window))} of the teacher's probability: of the rest the "
            "student learns how sure the teacher is, but not of what."
        ),
        remedies=mass_remedies,
        when="They hold less than 30 % of it on average, in half of the last 50 steps.",
        why="Tokens that only one of the two has are compared by their sorted probabilities, which hardly say which one is meant.",
        remedy="A student with a nearer vocabulary; uld_crossentropy_weight beside it.", source="own judgement",
    ),
    Rule(
        code="GOLD004", title="Completions have become very short", stage="train", needs=(LENGTH,), least=8, test=shrunk,
        message=lambda view: (
            f"The mean length of the policy's completions fell from {short(judge.start(view, LENGTH))} to "
            f"{short(view.mean(LENGTH, 10))} tokens: it may have found that saying little is never said wrongly."
        ),
        remedies=shrunk_remedies,
        when="The mean length is below 30 % of the first step's in 30 % of the last 50 rollouts, completions weren't cut short "
        "at the start, and no reward that is watched has risen.",
        why="An early end is a place where the student can agree with its teacher cheaply.",
        remedy="A beta nearer to 0, a lower learning_rate, looking at samples.", source="own threshold",
    ),
]  # fmt: skip

# Rewards are only watched here: what is about learning from them is left out, and so is a falling entropy, which is what a
# sure teacher teaches.
SHARED = ("GOLD105", "GOLD108", "GOLD111", "GOLD115")
RULES: list[Rule] = [
    *OWN, *(rule for rule in rollout_rules(NAMES) if rule.code in SHARED), *watched_rules(NAMES, mends)
]


@hookimpl
def ft_rules():
    return RULES
