"""Rules about the policy: entropy, clipping, the distance from the reference. Imports no torch."""

from __future__ import annotations

from functools import partial

from ft_host.diagnostics.remedies import lower_rate, restore, set_field, warmer
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.shared import helpers
from ft_host.diagnostics.shared.helpers import Names
from ft_host.diagnostics.view import View, percent, rounded, short, went

UNIQUE = "completions/unique_share"

# ---------------------------------------------------------------- 4, 5: entropy


def first_entropy(view: View, names: Names) -> float:
    """The higher of the first step's and the run's beginning: it may have collapsed by then."""
    return max(helpers.start(view, names.entropy) or 0.0, view.baseline(names.entropy) or 0.0)


def collapses(view: View, names: Names) -> bool | None:
    if view.step < 5:
        return None
    low = view[names.entropy] < 0.2 * first_entropy(view, names)
    return low and not helpers.learns(view, names) and not helpers.has_risen(view, names)


def least_entropy(view: View, names: Names) -> float | None:
    """The lower of the first step's and the run's beginning."""
    first, base = helpers.start(view, names.entropy), view.baseline(names.entropy)
    return first if first is None or base is None else min(first, base)


def explodes(view: View, names: Names) -> bool | None:
    base = least_entropy(view, names)
    if base is None or view.step < 5:
        return None
    now = view[names.entropy]
    return (
        now > 0.1 and now > 3 * base and helpers.gained(view, names) <= 0.02 and not helpers.rising(view, names.reward)
    )


def entropy_message(view: View, names: Names, begun: float) -> str:
    """`begun`: what the entropy is held against."""
    return (
        f"The policy's entropy {went(begun, view[names.entropy])} nats a token, while the mean reward"
        f" {went(view.first(names.reward, 3), view.mean(names.reward, 10))}"
    )


def same_said(view: View, names: Names) -> str:
    """Whether the completions of a prompt have become alike, where it has several and that is counted."""
    if not names.grouped or not view.count(UNIQUE):
        return "."
    now, first = percent(view.mean(UNIQUE, 10)), percent(view.first(UNIQUE, 3))
    return f"; {now} of the completions of a prompt are different ones, {first} at first."


def wider(view: View, names: Names) -> list[Remedy]:
    """Room for unlikely tokens to grow: DAPO's clip-higher. Not of losses where epsilon_high is something else."""
    config = vars(view.config)
    if "epsilon_high" not in config or config.get("loss_type") in names.capped or (config["epsilon_high"] or 0) >= 0.28:
        return []
    now = config["epsilon_high"] if config["epsilon_high"] is not None else config["epsilon"]
    return [Remedy(why=f"Raise epsilon_high from {short(now)} to 0.28", patch={"epsilon_high": 0.28})]


def clips(view: View) -> bool:
    """Whether anything can be clipped at all: from the second update of a rollout on."""
    return view.get("clip_ratio/region_mean", 0.0) > 0 or view.mean("clip_ratio/region_mean") > 0


def bonus(view: View) -> list[Remedy]:
    """A bonus for entropy, where there is none."""
    return (
        [] if vars(view.config).get("entropy_coef") else set_field(view, "entropy_coef", 0.01, ", a bonus for entropy")
    )


def collapse_remedies(view: View, names: Names) -> list[Remedy]:
    return [
        lower_rate(view, 3),
        *(wider(view, names) if clips(view) else []),
        *warmer(view),
        *bonus(view),
        *(
            set_field(view, "beta", 0.02, ", which holds the policy near the model it began as", again=True)
            if vars(view.config).get("beta") == 0
            else []
        ),
    ]


def explosion_remedies(view: View) -> list[Remedy]:
    out = [lower_rate(view, 3)]
    bonus = vars(view.config).get("entropy_coef")
    if bonus:
        out.insert(0, Remedy(why=f"Lower entropy_coef from {short(bonus)} to 0", patch={"entropy_coef": 0.0}))
    if view.config.temperature > 1:
        out += set_field(view, "temperature", 1.0, again=True)
    return [*out, Remedy(why="See whether the sampler's log-probs are the trainer's (ENG001)")]


# ---------------------------------------------------------------- 6: clipping


def clip_limits(view: View, names: Names) -> tuple[float, float]:
    """Where a share of clipped tokens, or completions, is too much, and where it is an error."""
    by_completion = names.clip_of_completions or vars(view.config).get("importance_sampling_level") == "sequence"
    return (0.3, 0.6) if by_completion else (0.05, 0.2)


def leaves_range(view: View, names: Names) -> bool | None:
    """Of updates in which ratios can leave it: not of the first one of a rollout."""
    if "perf/rollout_time" in view.entry and not view[names.clip]:
        return None
    return view[names.clip] > clip_limits(view, names)[0]


def clip_remedies(view: View, names: Names) -> list[Remedy]:
    out = [lower_rate(view)]
    high, low = view.mean("clip_ratio/high_mean"), view.mean("clip_ratio/low_mean")
    if high > 3 * low:
        out += wider(view, names)
    passes = vars(view.config).get(names.passes, 1)
    if passes > 1:
        out += set_field(view, names.passes, max(1, passes // 2), ": fewer passes over each rollout")
    if vars(view.config).get("steps_per_generation"):
        out += set_field(view, "steps_per_generation", None, ", so that each rollout is one step", again=True)
    return out


def clip_message(view: View, names: Names) -> str:
    high, low = view.mean("clip_ratio/high_mean", view.window), view.mean("clip_ratio/low_mean", view.window)
    of = "completions" if clip_limits(view, names)[0] == 0.3 else "tokens"
    sides = high + low
    told = (
        ""
        if not sides > 0
        else f", {percent(max(high, low) / sides)} of these on the {'high' if high > low else 'low'} side"
    )
    return (
        f"The clip ratio left its range in {percent(view.share)} of steps: more than"
        f" {percent(clip_limits(view, names)[0])} of {of} were clipped there,"
        f" {percent(view.mean(names.clip, view.window))}"
        f" on average over the last {view.window} steps{told}. What is clipped teaches nothing."
    )


# ---------------------------------------------------------------- 7: KL


def kl(view: View, names: Names, value: float) -> float:
    """A token's, in nats."""
    length = view.mean("completions/mean_length", 10)
    return value / max(length, 1.0) if names.kl_of_completions and length == length else value


def kl_blows_up(view: View, names: Names) -> bool:
    now = kl(view, names, view[names.kl])
    if now > 2:
        return True
    falls = helpers.falling(view, names.reward)
    has = helpers.learns(view, names) or helpers.has_risen(view, names)
    if helpers.rising(view, names.reward) or (has and not falls):
        return False  # it goes up with what is learnt, or has
    return now > 0.5 or (now > 0.1 and helpers.rising(view, names.kl) and falls)


NEAR = 0.25  # nats a token from the reference, to which a stronger hold should bring a policy


def kl_remedies(view: View, names: Names) -> list[Remedy]:
    times = min(max(kl(view, names, view.mean(names.kl, 10)) / NEAR, 2.0), 10.0)
    config, out = vars(view.config), [lower_rate(view, times)]
    for field in ("beta", "kl_coef"):
        if config.get(field):
            out += set_field(view, field, rounded(times * config[field]), ": a stronger hold on the reference")
    return [*out, restore(view)]


def rules(names: Names) -> list[Rule]:
    of = partial(partial, names=names)
    out = [
        Rule(
            code=names.code(4),
            title="Entropy collapses",
            stage="train",
            symptom="no_variety",
            level="policy",
            follows_from=helpers.BREAKS,
            mutes=helpers.ruin(names, 4),
            needs=(names.entropy, names.reward),
            test=of(collapses),
            least=10,
            message=lambda view: entropy_message(view, names, first_entropy(view, names)) + same_said(view, names),
            remedies=of(collapse_remedies),
            when=(
                "Entropy is below a fifth of what it was at the start in 30 % of the last 50 rollouts, and the reward "
                "neither rises nor has risen beyond doubt."
            ),
            why=(
                "A policy that has become sure of one way to answer samples nothing else, so that nothing can be"
                " compared. Entropy that goes down as the task is learnt is no trouble."
            ),
            remedy=(
                "Lower learning_rate, raise epsilon_high to 0.28, raise temperature, an entropy bonus, beta above 0."
            ),
            source="DAPO 2503.14476; axolotl docs/training_stability; 2505.22617",
        ),
        Rule(
            code=names.code(5),
            title="Entropy explodes",
            stage="train",
            symptom="divergence",
            level="policy",
            follows_from=helpers.BREAKS,
            mutes=helpers.ruin(names, 5),
            needs=(names.entropy, names.reward),
            test=of(explodes),
            least=8,
            message=lambda view: entropy_message(view, names, least_entropy(view, names) or 0.0) + ".",
            remedies=explosion_remedies,
            when=(
                "Entropy is above three times what it was at the start in 30 % of the last 50 rollouts, and no reward"
                " has been gained."
            ),
            why="Updates that are too large, or an entropy bonus that outweighs the reward, make all tokens alike.",
            remedy="Lower learning_rate or entropy_coef, lower temperature; see ENG001.",
            source="axolotl docs/training_stability; own judgement of the ratio",
        ),
        Rule(
            code=names.code(7),
            title="KL divergence blows up",
            stage="train",
            symptom="forgetting",
            level="policy",
            follows_from=helpers.BREAKS,
            mutes=helpers.ruin(names, 7),
            needs=(names.kl, names.reward),
            test=of(kl_blows_up),
            least=8,
            severe=lambda view: kl(view, names, view.mean(names.kl, 10)) > 2,
            message=lambda view: (
                f"The policy is {short(kl(view, names, view[names.kl]))} nats a token from the reference"
                f" ({short(kl(view, names, view.mean(names.kl, 10)))} as a mean of 10 rollouts), and the mean reward"
                f" {went(view.first(names.reward, 3), view.mean(names.reward, 10))}."
            ),
            remedies=of(kl_remedies),
            when=(
                "The KL divergence of a token is above 0.5 nats and the reward neither rises nor has risen, or above 2,"
                " or rises while the reward falls, in 30 % of the last 50 rollouts; above 2 on average: an error."
            ),
            why=(
                "The policy leaves the model that it began as, which isn't paid for: it forgets, or games the reward."
                " KL that goes up slowly with the reward is no trouble."
            ),
            remedy="Lower learning_rate, raise beta (0.001 to 0.04 is usual), go back to the best checkpoint.",
            source="axolotl docs/training_stability; Gao et al. 2210.10760",
        ),
    ]
    if names.clip is not None:
        out.append(
            Rule(
                code=names.code(6),
                title="Clip ratio out of range",
                stage="train",
                symptom="divergence",
                level="updates",
                follows_from=(*helpers.BREAKS, "PRB002"),
                mutes=helpers.ruin(names, 6),
                needs=(names.clip,),
                least=10,
                test=of(leaves_range),
                severe=lambda view: view.mean(names.clip, view.window) > clip_limits(view, names)[1],
                message=of(clip_message),
                remedies=of(clip_remedies),
                when=(
                    "More than 5 % of tokens (30 % of completions, where ratios are of completions) are clipped in 30 %"
                    " of the last 50 steps that aren't the first of a rollout; 20 % (60 %) on average: an error."
                ),
                why=(
                    "Within one rollout the policy leaves the range in which its old log-probs tell anything; what is"
                    " clipped teaches nothing."
                ),
                remedy=(
                    "Lower learning_rate, make fewer passes over a rollout; epsilon_high where only the high side"
                    " clips."
                ),
                source="axolotl docs/training_stability; own judgement of the share of tokens",
            )
        )
    return out
