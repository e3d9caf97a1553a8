"""Rules about how completions look: cut short, long, short, all the same. Imports no torch."""

from __future__ import annotations

from functools import partial

from ft_host.diagnostics.remedies import lower_rate, set_field, warmer
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import helpers
from ft_host.diagnostics.shared.helpers import Names
from ft_host.diagnostics.shared.policy import bonus
from ft_host.diagnostics.sizes import length_for
from ft_host.diagnostics.view import View, percent, short, went

CUT, LENGTH, UNIQUE = "completions/clipped_ratio", "completions/mean_length", "completions/unique_share"
LINKED = "completions/reward_length_correlation"

NEARLY_ALL = 0.9  # of the completions

# ---------------------------------------------------------------- 8: cut short


def cut_short(view: View) -> bool | None:
    """Once it can be told whether the model is just learning to end: fewer than at first, or ever fewer."""
    if view.count(CUT) < 10 or not view.recent(CUT, 10):
        return None
    fewer = view.mean(CUT, 10) < 0.8 * (helpers.start(view, CUT) or 0.0)
    return view[CUT] > 0.3 and not fewer and not helpers.falling(view, CUT)


def ended_once(view: View) -> bool:
    begun = helpers.start(view, CUT)
    return begun is not None and begun < 0.1


def forgot_to_end(view: View) -> bool:
    """It ended its completions at first; or most of them are whole all the same."""
    return ended_once(view) or view.mean(CUT, view.window) <= 0.8


def cut_remedies(view: View) -> list[Remedy]:
    now, positions = view.config.max_completion_length, view.facts.get("model/positions")
    room = None if positions is None else positions - view.facts.get("data/length_max", 0)
    new = length_for(now, view.mean(CUT, view.window), room)
    why = f"Raise max_completion_length from {now} to {new}"
    longer = Remedy(why=why, patch={"max_completion_length": new}, again=True, measured=True)
    out = [longer] if new > now else []
    if view.mean(CUT, view.window) < NEARLY_ALL and helpers.span(view) is not None:
        out += set_field(
            view, "mask_truncated_completions", True, ", so that being cut short isn't learnt from"
        ) + set_field(view, "missing_eos_penalty", 1.0, ", taken off what is cut short")
    else:  # nothing would be left to learn from: hardly any is whole, or all have earned the same
        out.append(Remedy(why="Teach the model to end its answers first (SFT), or begin with one that does"))
    if ended_once(view):
        begun = percent(helpers.start(view, CUT) or 0.0)
        out.insert(0, lower_rate(view, 3, f": {begun} were cut short at the start"))
    return out


def cut_message(view: View) -> str:
    begun = helpers.start(view, CUT)
    told = "" if begun is None else f" ({percent(begun)} at the start)"
    return (
        f"{percent(view.mean(CUT, view.window))} of completions were cut short by max_completion_length"
        f" {view.config.max_completion_length} over the last {view.window} rollouts{told}: what they would have come to"
        " is neither seen nor rewarded."
    )


# ---------------------------------------------------------------- 9, 10: length


def length_hacked(view: View) -> bool | None:
    begun = view.baseline(LENGTH)
    if begun is None:
        return None
    if helpers.held_out_rises(view):
        return False  # longer answers are better ones
    return view[LENGTH] > 1.5 * begun and view.mean(LINKED, 20) > 0.5


def length_gone(view: View, names: Names) -> bool | None:
    begun = helpers.start(view, LENGTH)
    if begun is None or view.step < 5:
        return None
    cut = helpers.start(view, CUT) or 0.0
    if view[LENGTH] >= 0.3 * begun or cut >= 0.3:
        return False  # where they didn't end before, now they do
    return helpers.gained(view, names) < 0.3 or view.mean(LINKED, 20) < -0.5


# ---------------------------------------------------------------- 12: all the same


def duplicates(view: View, names: Names) -> bool:
    share, least = view[UNIQUE], 1 / view.config.num_generations
    reached = helpers.level(view, names)
    solved = (reached is not None and reached >= helpers.SOLVED) or helpers.knows(view, names)
    solved = solved or helpers.at_best(view, names)
    if helpers.span(view) is None and helpers.one_for_all(view):
        return False  # the reward tells nothing apart, be they alike or not
    if solved or helpers.learns(view, names) or helpers.has_risen(view, names):
        return False
    if share < least + 0.04 * (1 - least):  # one completion, again and again
        return True
    return share < 0.5 and share < 0.5 * (helpers.start(view, UNIQUE) or 0.0)


def became_alike(view: View) -> bool:
    """Whether they were different ones at first, of what variety there can be: it isn't how they are sampled."""
    least = 1 / view.config.num_generations
    begun, now = (helpers.start(view, UNIQUE) or 0.0) - least, view.mean(UNIQUE, 5) - least
    return begun > 0.3 * (1 - least) and now < 0.5 * begun


def duplicate_remedies(view: View) -> list[Remedy]:
    config, out = view.config, warmer(view)
    for field, usual in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        if vars(config)[field] != usual:
            out += set_field(view, field, usual, ": sample from all tokens", again=True)
    if became_alike(view):
        out.append(lower_rate(view, 3))
    return [*out, *bonus(view)]


def rules(names: Names) -> list[Rule]:
    of = partial(partial, names=names)
    reward = names.reward
    other_loss = f", loss_type {names.by_no_length}" if names.by_no_length else ""
    out = [
        Rule(
            code=names.code(8),
            title="Completions are cut short",
            stage="train",
            symptom=lambda view: "forgetting" if ended_once(view) else "cut",
            level="signal",
            follows_from=("DATA038", *helpers.BROKEN_REWARD, *helpers.BREAKS),
            later=("policy", forgot_to_end),
            needs=(CUT,),
            share=0.5,
            least=4,
            test=cut_short,
            mutes=(*helpers.ruin(names, 8), "policy"),
            severe=lambda view: view.mean(CUT, view.window) > 0.8,
            message=cut_message,
            remedies=cut_remedies,
            when=(
                "More than 30 % of completions end at max_completion_length in half of the last 50 rollouts, and no"
                " fewer than before, nor 80 % of as many as at the start; 80 % on average: an error."
            ),
            why="Answers that need more tokens are punished for it, or the policy doesn't end its answers.",
            remedy="Raise max_completion_length, leave cut completions out of the loss, teach the end of a turn (SFT).",
            source="axolotl docs/training_stability; DAPO 2503.14476",
        ),
        Rule(
            code=names.code(9),
            title="Longer completions earn more",
            stage="train",
            level="policy",
            needs=(LENGTH, LINKED),
            share=0.5,
            test=length_hacked,
            message=lambda view: (
                f"The mean length {went(view.baseline(LENGTH) or 0.0, view[LENGTH])} tokens, and longer completions"
                f" earn more (correlation {short(view.mean(LINKED, 20))}): the policy may be paid for length."
            ),
            remedies=lambda view: [
                Remedy(why="Add a reward that falls with length, or take length out of the one there is"),
                *(
                    set_field(view, "loss_type", names.by_no_length, ", which has no bias towards length", again=True)
                    if vars(view.config).get("loss_type") in names.by_length
                    else []
                ),
            ],
            when=(
                "The mean length is 50 % above the run's beginning and the correlation of reward and length within"
                " rollouts above 0.5, in half of the last 50; not while held-out completions earn more than at first."
            ),
            why="A reward that grows with length is the easiest one to raise.",
            remedy=f"A penalty of length{other_loss}, a limit.",
            source="axolotl docs/training_stability",
        ),
        Rule(
            code=names.code(10),
            title="Completions have become very short",
            stage="train",
            symptom="forgetting",
            level="policy",
            follows_from=helpers.BREAKS,
            mutes=helpers.ruin(names, 10),
            needs=(LENGTH, reward),
            least=8,
            test=of(length_gone),
            message=lambda view: (
                f"The mean length {went(helpers.start(view, LENGTH) or 0.0, view[LENGTH])} tokens, while the mean"
                f" reward {went(view.first(reward, 3), view.mean(reward, 10))}"
                + (
                    f" and shorter completions earn more (correlation {short(view.mean(LINKED, 20))})."
                    if view.mean(LINKED, 20) < -0.5
                    else "."
                )
            ),
            remedies=lambda view: [
                lower_rate(view, 3),
                Remedy(why="Look at the completions in samples.jsonl: and what the short ones earn"),
            ],
            when=(
                "The mean length is below 30 % of the first step's in 30 % of the last 50 rollouts, completions weren't"
                " cut short at the start, and the reward hasn't gained 30 % of what there was to gain, or falls with"
                " length (correlation below -0.5)."
            ),
            why="An empty or very short answer is safe where answers are punished, and where the policy breaks.",
            remedy="Lower learning_rate, look at samples, reward answers.",
            source="own judgement",
        ),
    ]
    if names.grouped:
        out.append(
            Rule(
                code=names.code(12),
                title="The completions of a prompt are the same",
                stage="train",
                symptom="no_variety",
                level="signal",
                follows_from=(*helpers.BROKEN_REWARD, *helpers.BREAKS),
                mutes=(*helpers.ruin(names, 12), "policy"),
                later=("policy", became_alike),
                needs=(UNIQUE, reward),
                fields=("num_generations",),
                share=0.5,
                least=10,
                test=of(duplicates),
                message=lambda view: (
                    f"{percent(view[UNIQUE])} of the completions of a prompt are different ones"
                    f" ({percent(helpers.start(view, UNIQUE) or 0.0)} at the start), at a mean reward of"
                    f" {short(view.mean(reward, 10))}: the others can't be told apart."
                ),
                remedies=duplicate_remedies,
                when=(
                    "In half of the last 50 rollouts nearly all completions of a prompt are the same, or their"
                    " variety is below half and has halved; and the reward neither rises, nor has risen, nor is high"
                    " from the start (that of right answers, where they were tried beforehand)."
                ),
                why="Sampling is too cold, or the policy has collapsed onto one answer.",
                remedy="Raise temperature, sample from all tokens, lower learning_rate.",
                source="own judgement",
            )
        )
    return out
