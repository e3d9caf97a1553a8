"""Rewards that were tried on right answers and on rubbish before training (`check_rewards`). Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

TURNED = 0.9  # of the rows: a wrong completion may be right by chance


def fails(view: View) -> bool:
    return view["data/reward/*/failed"] > 0.25 or view.get("data/reward/*/not_finite", 0) > 0


def is_turned(view: View) -> bool:
    return not fails(view) and view.get("data/reward/*/turned", 0) > TURNED


def weights_of(view: View) -> list[float]:
    return list(view.config.reward_weights) or [1.0] * len(view.config.reward)


def reward_is_broken(view: View) -> bool:
    if fails(view) or is_turned(view):
        return True
    return bool(view.get("data/reward/*/whole")) and view.get("data/reward/*/spread", 1.0) == 0


def reward_message(view: View) -> str:
    name = view.name("*")
    said = view.get("data/reward/*/said")
    why = f", for instance: {said}" if said else ""
    if view["data/reward/*/failed"] > 0.25:
        return f"Reward {name} fails for {percent(view['data/reward/*/failed'])} of completions tried beforehand{why}."
    if view.get("data/reward/*/not_finite", 0) > 0:
        return f"Reward {name} isn't finite for {percent(view['data/reward/*/not_finite'])} of completions{why}."
    if is_turned(view):
        weight = weights_of(view)[view["data/reward/*/place"]]
        weighted = f", with its weight of {short(weight)}," if weight != 1 else ""
        return (
            f"Reward {name}{weighted} gives the row's own answer less than each of the wrong ones tried beforehand, in"
            f" {percent(view['data/reward/*/turned'])} of the rows: what is learnt is to be wrong."
        )
    return (
        f"Reward {name} is {short(view['data/reward/*/value'])} for the data's own answers as for empty and random"
        " text: there is nothing in it to learn from."
    )


def turned_places(view: View) -> set[int]:
    """The places of the rewards whose weights may be turned. Of one that doesn't read the answer only a negative one:
    what pays for brevity isn't to pay for length."""
    ends = {name for name in view.facts if name.startswith("data/reward/") and name.endswith("/turned")}
    shares = {name.removesuffix("/turned"): view.facts[name] for name in ends}
    reads = {view.facts[f"{name}/place"]: view.facts[f"{name}/reads"] for name in shares if shares[name] > TURNED}
    return {place for place, does in reads.items() if does or weights_of(view)[place] < 0}


def surely_turned(view: View) -> bool:
    return is_turned(view) and view["data/reward/*/place"] in turned_places(view)


def reward_remedies(view: View) -> list[Remedy]:
    if not surely_turned(view):
        return [Remedy(why="Try the reward on right and wrong answers by itself, and mend it")]
    places = turned_places(view)
    turned = [-each if place in places else each for place, each in enumerate(weights_of(view))]
    why = f"Set reward_weights to {turned}: right answers are to earn more than wrong ones"
    return [Remedy(why=why, patch={"reward_weights": turned}, again=True)]


RULES = [
    Rule(
        code="DATA010",
        title="A reward fails or can't tell right from wrong",
        stage="before",
        level="rewards",
        needs=("data/reward/*/failed",),
        mutes=("results",),
        test=reward_is_broken,
        severe=surely_turned,
        message=reward_message,
        remedies=reward_remedies,
        when=(
            "Tried on the data's own answers and on rubbish, it fails for over a quarter, gives a number that isn't"
            " finite, or gives the same for all though rows hold whole completions. Or all rewards together, and this"
            " one with its weight, give the row's own answer less than each piece of rubbish, in over 90 % of 8 rows:"
            " an error. Of a reward that doesn't read the answer it is told where rows hold whole completions, as a"
            " warning unless its weight is negative. Slow functions and reward models aren't tried."
        ),
        why="What a reward doesn't tell apart can't be learnt; found out later, it costs a run.",
        remedy="Test the reward by itself.",
        source="axolotl docs/training_stability",
    )
]
