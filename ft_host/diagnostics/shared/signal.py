"""Rules about rewards that tell completions apart, or don't. Imports no torch."""

from __future__ import annotations

from functools import partial

from ft_host.diagnostics.remedies import LOOK_AT_REWARD, lower_rate, more_generations, set_field, warmer
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import helpers
from ft_host.diagnostics.shared.helpers import Names, rounds
from ft_host.diagnostics.view import View, percent, short, went

FLAT, UNIQUE = "frac_reward_zero_std", "completions/unique_share"
# The share of groups that may hold no signal. Two completions of a prompt earn the same by chance more often than
# eight.
MANY = 4  # times as many completions of a prompt: beyond, other prompts are cheaper
# Where half of the prompts are easy and half are hard, 55 % of groups of four are flat, and the others teach.
FLAT_LIMITS = {2: (0.85, 0.95), 3: (0.75, 0.9), 4: (0.7, 0.9), 5: (0.65, 0.85), 6: (0.6, 0.85)}


# ---------------------------------------------------------------- 1: no variance


def limits(view: View) -> tuple[float, float]:
    return FLAT_LIMITS.get(view.config.num_generations, (0.5, 0.8))


def solved_groups(view: View, names: Names) -> bool:
    """Whether groups are equal since they are all right: nearly always, or they have become so in this run. Of the
    groups that differ, half of the completions are taken to be right."""
    level, flat = helpers.level(view, names), view.mean(FLAT, 10)
    if helpers.knows(view, names) or helpers.at_best(view, names):
        return True
    if level is None:
        return helpers.gained(view, names) >= 0.2
    if level >= 0.9:
        return True  # nearly all that there is to earn, from the start or not
    return helpers.gained(view, names) >= 0.2 and level - (1 - flat) / 2 >= 0.6 * flat


def no_variance(view: View, names: Names) -> bool:
    if view[FLAT] <= limits(view)[0] or vars(view.config).get("dynamic_sampling"):
        return False  # dynamic_sampling puts other groups in their place
    learns = helpers.rising(view, names.reward) or helpers.has_risen(view, names)
    return not solved_groups(view, names) and not learns


def equal_level(view: View, names: Names) -> float | None:
    """What groups that are equal earn, from 0, the least that any completion has earned, to 1, the most. Of the groups
    that differ, half of the completions are taken to be right. None where nothing is known to earn more or less."""
    reached, flat = helpers.level(view, names, view.window), view.mean(FLAT, view.window)
    return None if reached is None else min(1.0, max(0.0, (reached - (1 - flat) / 2) / flat))


def side(view: View, names: Names) -> str:
    """Why completions earn the same: "constant", "alike", "hard", "easy" or "between"."""
    at = equal_level(view, names)
    if at is None:
        return "constant" if view.mean("reward_std", view.window) < 1e-6 else "between"
    if view.count(UNIQUE) and view.mean(UNIQUE, view.window) < 1.5 / view.config.num_generations:
        return "alike"
    return "hard" if at < 0.3 else "easy" if at > 0.7 else "between"


def side_message(view: View, names: Names) -> str:
    """What the run's own numbers say of it. They don't tell a hard task from a reward that misses what is right."""
    why, found = side(view, names), helpers.span(view)
    if why == "constant":
        return "no completion of the run has earned anything else: the reward tells nothing apart"
    if why == "alike":
        return f"{percent(view.mean(UNIQUE, view.window))} of the completions of a prompt are different ones"
    if found is None:
        return "the completions of a prompt aren't told apart"
    where = f"completions have earned {short(found[0])} to {short(found[1])}, and such groups are near the"
    if why == "hard":
        return f"{where} lower end: the prompts are hard for this model, or the reward misses what is right"
    if why == "easy":
        return f"{where} upper end: the prompts are easy for this model, or the reward is given for anything"
    return f"completions have earned {short(found[0])} to {short(found[1])}, and such groups are at neither end"


def success_rate(view: View, names: Names) -> float | None:
    """The share of completions that earn the most, as far as the mean tells, where they earn all or nothing. None where
    that isn't known, or where none or all of them did."""
    level = helpers.level(view, names, view.window)
    return level if level is not None and 0 < level < 1 else None


def no_variance_message(view: View, names: Names) -> str:
    return (
        f"Reward variance is near zero in {percent(view.mean(FLAT, view.window))} of groups over the last"
        f" {rounds(view)}: they teach nothing. Mean reward is {short(view.mean(names.reward, view.window))};"
        f" {side_message(view, names)}."
    )


def reached_message(view: View, names: Names) -> str:
    reached = helpers.level(view, names)
    return "" if reached is None else f", {percent(reached)} of the way from the least to the most that was earned"


def no_variance_remedies(view: View, names: Names) -> list[Remedy]:
    why, out = side(view, names), []
    begun, now = view.first(names.reward), view.mean(names.reward, 10)
    if why != "constant" and now < begun - 0.3 * abs(begun):
        out.append(lower_rate(view, 5, f": the mean reward {went(begun, now)}"))
    if view.config.temperature < 0.7:
        out += warmer(view)
    if why == "constant":
        return [LOOK_AT_REWARD, *out]
    more = more_generations(view, success_rate(view, names))
    other = set_field(view, "dynamic_sampling", True, ", which draws other prompts in the place of such groups")
    other = other if view.mean(FLAT, view.window) < 0.95 else []
    far = bool(more) and more[0].patch["num_generations"] > MANY * view.config.num_generations
    out += [*other, *more] if far else [*more, *other]
    if why == "easy":
        harder = Remedy(why="Take harder prompts: those that the model gets right half of the time teach most")
        return [*out, harder, LOOK_AT_REWARD]
    out += warmer(view) if view.config.temperature >= 0.7 else []
    if why == "hard":
        out.append(Remedy(why="Take easier prompts, tune on solutions first (SFT), or reward parts of a solution too"))
    return out if why == "alike" and out else [*out, LOOK_AT_REWARD]


def constant(view: View, names: Names) -> bool:
    """Of methods without groups: all completions of a rollout earn the same."""
    least, most = view["completions/reward_min"], view["completions/reward_max"]
    return most - least <= 1e-8 * max(1.0, abs(most)) and helpers.gained(view, names) < 0.2


# ---------------------------------------------------------------- 2: rewards that cancel


def spreads_of(view: View) -> dict[str, float]:
    """The standard deviations of the reward functions, of this rollout."""
    return {
        name.removeprefix("rewards/").removesuffix("/std"): value
        for name, value in view.entry.items()
        if name.startswith("rewards/") and name.endswith("/std")
    }


def cancels(view: View) -> bool:
    spreads = spreads_of(view)
    return len(spreads) > 1 and max(spreads.values()) > 1e-3 and view["reward_std"] < 1e-4 * max(spreads.values())


# ---------------------------------------------------------------- the rules


def rules(names: Names) -> list[Rule]:
    return grouped(names) if names.grouped else ungrouped(names)


def grouped(names: Names) -> list[Rule]:
    of = partial(partial, names=names)
    mutes = ("OPT002", names.code(3), names.code(13), "standstill")
    return [
        Rule(
            code=names.code(1),
            title="Reward variance is near zero",
            stage="train",
            symptom="no_signal",
            level="signal",
            later=("results", of(helpers.lost)),
            follows_from=(*helpers.UNREWARDED, *helpers.BREAKS),
            needs=(FLAT, names.reward),
            fields=("num_generations",),
            test=of(no_variance),
            share=0.5,
            least=10,
            severe=lambda view: view.mean(FLAT, view.window) > limits(view)[1],
            message=of(no_variance_message),
            remedies=of(no_variance_remedies),
            mutes=mutes,
            when=(
                "In half of the last 50 rollouts, all completions earn the same in more than half of the groups (with"
                " two completions a prompt: 85 %, four: 70 %), and the reward neither rises nor has risen, nor is three"
                " quarters of what there is to earn from the start; 80 % on average: an error."
            ),
            why=(
                "Completions are compared within their group: where all earn the same there is nothing to learn. Groups"
                " that are equal since all are right are no trouble (GRPO016)."
            ),
            remedy=(
                "Harder or easier prompts, more completions a prompt, a higher temperature, rewards for parts, "
                "dynamic_sampling."
            ),
            source="axolotl docs/training_stability; DAPO 2503.14476; PRIME-RL",
        ),
        Rule(
            code=names.code(2),
            title="Rewards cancel each other",
            stage="train",
            symptom="no_signal",
            level="rewards",
            needs=("reward_std",),
            test=cancels,
            severity="error",
            share=0.5,
            least=5,
            mutes=(names.code(1), names.code(12), *mutes, "policy", "results"),
            message=lambda view: (
                "The rewards differ from completion to completion ("
                + ", ".join(f"{name}: standard deviation {short(spread)}" for name, spread in spreads_of(view).items())
                + f"), but their weighted sum doesn't ({short(view['reward_std'])}): they cancel, and nothing is"
                " learnt."
            ),
            remedies=lambda view: [Remedy(why="Change reward_weights, so that one of the rewards outweighs the other")],
            when="A reward's standard deviation is above 0.001 and that of the sum is nothing beside it.",
            why="Two rewards with opposite signs, or weights, add up to a constant.",
            remedy="Change reward_weights, or leave one reward out.",
            source="TRL issue 3857",
        ),
        Rule(
            code=names.code(16),
            title="Most prompts are solved",
            stage="train",
            level="notes",
            needs=(FLAT, names.reward),
            fields=("num_generations",),
            severity="info",
            share=0.5,
            least=15,
            test=lambda view: view[FLAT] > limits(view)[0] and solved_groups(view, names),
            message=lambda view: (
                f"The completions of a prompt earn the same in {percent(view.mean(FLAT, view.window))} of groups, and"
                " the mean reward"
                f" {went(view.first(names.reward), view.mean(names.reward, 10))}{reached_message(view, names)}: such"
                " groups have nothing left to teach."
            ),
            remedies=lambda view: [
                *set_field(view, "dynamic_sampling", True, " to learn from the others alone"),
                Remedy(why="Go on with harder prompts"),
            ],
            when=(
                "More than half of the groups are equal, and the reward is 90 % of the way from the least to the most"
                " that was seen, or has risen to where most of them must be right."
            ),
            why="No trouble: the task is being solved.",
            remedy="Stop, or go on with harder prompts.",
            source="own judgement",
        ),
    ]


def ungrouped(names: Names) -> list[Rule]:
    return [
        Rule(
            code=names.code(1),
            title="All completions earn the same",
            stage="train",
            symptom="no_signal",
            level="signal",
            later=("results", partial(helpers.lost, names=names)),
            follows_from=(*helpers.UNREWARDED, *helpers.BREAKS),
            needs=("completions/reward_max", "completions/reward_min", names.reward),
            test=partial(constant, names=names),
            share=0.5,
            least=10,
            severity="error",
            mutes=("OPT002", names.code(3), names.code(13), "standstill"),
            message=lambda view: (
                f"The completions of a rollout earned the same {view.often}, {short(view['completions/reward_max'])} in"
                " this one: nothing tells them apart. Either the reward doesn't, or they are all wrong, or all right."
            ),
            remedies=lambda view: [
                LOOK_AT_REWARD,
                *warmer(view),
                Remedy(why="Take easier or harder prompts, or reward parts of a solution too"),
            ],
            when="All completions of half of the last rollouts earn the same.",
            why="What is above the value model's guess can't be told from what is below.",
            remedy="Try the reward by hand; easier prompts; rewards for parts.",
            source="axolotl docs/training_stability",
        )
    ]
