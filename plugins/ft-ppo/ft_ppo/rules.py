"""The rules of PPO: its own, and from PPO100 on those of all rollouts. Imports no torch."""

from __future__ import annotations

from ft_host.api import hookimpl
from ft_host.diagnostics import (
    Names,
    Remedy,
    Rule,
    Suspect,
    View,
    learns,
    lower_rate,
    percent,
    rising,
    rollout_rules,
    ruin,
    set_field,
    short,
    went,
)

KL, CLIPPED, EXPLAINED = "policy/approxkl_avg", "policy/clipfrac_avg", "val/explained_variance"
VALUE, RATIO, SPREAD = "loss/value_avg", "start/val/ratio", "start/val/ratio_var"
TARGET_KL = 0.02
FAR_OFF = -3.0  # explained variance: errors of twice the returns' own spread
SHARED = Names(
    letters="PPO",
    first=100,
    reward="objective/scores",
    entropy="policy/entropy_avg",
    kl="objective/kl",
    kl_of_completions=True,
    clip=None,
    passes="num_ppo_epochs",
    grouped=False,
)


def fewer_epochs(view: View) -> list[Remedy]:
    epochs = view.config.num_ppo_epochs
    return set_field(view, "num_ppo_epochs", epochs // 2, ": fewer passes over each rollout") if epochs > 1 else []


def earns_most(view: View) -> bool:
    """Whether the mean score is in the upper quarter of what completions have earned; also where that isn't known."""
    least, most = view.series.get("completions/reward_min"), view.series.get("completions/reward_max")
    if least is None or most is None:
        return True
    return view.mean(SHARED.reward, 10) >= most.most - 0.25 * (most.most - least.least)


def knows_nothing(view: View) -> bool | None:
    """After a fifth of the run, and at least 20 steps, which the value model needs. Of returns that hardly differ,
    since the task is solved, there is nothing to explain. Where the reward rises all the same, values have to be far
    off, and further than at first."""
    if not view.warmed_up or view.step < max(20, 0.2 * (view.total_steps or 0)):
        return None
    if learns(view, SHARED):
        return True if not earns_most(view) and view[EXPLAINED] < min(FAR_OFF, view.first(EXPLAINED, 5)) else None
    return view[EXPLAINED] < -0.1 and not rising(view, EXPLAINED)


def value_loss_rises(view: View) -> bool | None:
    base = view.baseline(VALUE)
    return None if base is None or view.step < 25 else view[VALUE] > 5 * base


OWN = [
    Rule(
        code="PPO001",
        title="The policy moves too far in an update",
        stage="train",
        symptom="divergence",
        level="updates",
        follows_from=("OPT007", "PRB003"),
        mutes=("PPO002", "PPO003", "PPO005", *ruin(SHARED, 6)),
        needs=(KL,),
        least=10,
        test=lambda view: view[KL] > 1.5 * TARGET_KL,
        severe=lambda view: view.mean(KL, view.window) > 10 * TARGET_KL,
        message=lambda view: (
            f"The KL divergence of the policy from the one that sampled was above {1.5 * TARGET_KL:g} in "
            f"{percent(view.share)} of steps, "
            f"{short(view.mean(KL, view.window))} on average."
        ),
        remedies=lambda view: [lower_rate(view, 3), *fewer_epochs(view)],
        when=(
            "policy/approxkl_avg is above 0.03, 1.5 times the usual target of 0.02, in 30 % of the last 50 steps; above"
            " 0.2 on average: an error."
        ),
        why="Advantages are estimates for the sampling policy: far from it they are no longer valid.",
        remedy="Lower learning_rate, fewer num_ppo_epochs.",
        source="Stable-Baselines3 and CleanRL: target_kl",
    ),
    Rule(
        code="PPO002",
        title="The value model explains nothing",
        stage="train",
        symptom="no_learning",
        level="policy",
        # Returns that are all the same have no variance to explain; steps that go too far leave values behind.
        follows_from=("PPO101", "OPT007"),
        mutes=("PPO103", "PPO110", "PPO115", "OPT014"),  # advantages that point the wrong way ruin a policy
        needs=(EXPLAINED,),
        share=0.6,
        least=10,
        test=knows_nothing,
        message=lambda view: (
            f"Values were further from the returns than their mean is, in {percent(view.share)} of steps: the explained"
            f" variance is {short(view.median(EXPLAINED, view.window))} (median); of a constant it"
            " would be 0."
        ),
        remedies=lambda view: [
            Remedy(
                why=f"Raise vf_coef from {short(view.config.vf_coef)} to {short(5 * view.config.vf_coef)}",
                patch={"vf_coef": 5 * view.config.vf_coef},
                again=True,
            ),
            *set_field(view, "cliprange_value", 2 * view.config.cliprange_value, ", so that values can follow"),
            Remedy(why="Initialise the value model from a reward model (value_model)"),
        ],
        when=(
            "After a fifth of the run, val/explained_variance is below -0.1, and doesn't rise, in 60 % of the last 50"
            f" steps; below {FAR_OFF:g}, and below its first values, where the reward rises and isn't near its most."
        ),
        why="A value model that is worse than a constant adds noise to every advantage.",
        remedy="Raise vf_coef or cliprange_value, start from a reward model, warm up.",
        source="Stable-Baselines3 explained_variance; own judgement of the threshold",
    ),
    Rule(
        code="PPO003",
        title="Too much is clipped",
        stage="train",
        symptom="divergence",
        level="updates",
        follows_from=("OPT007", "PRB003"),
        mutes=("PPO002", "PPO005", *ruin(SHARED, 6)),
        needs=(CLIPPED,),
        least=10,
        test=lambda view: view[CLIPPED] > 0.3,
        severe=lambda view: view.mean(CLIPPED, view.window) > 0.5,
        message=lambda view: (
            f"More than 30 % of tokens were clipped in {percent(view.share)} of steps,"
            f" {percent(view.mean(CLIPPED, view.window))} on average: clipped tokens give no gradient."
        ),
        remedies=lambda view: [lower_rate(view), *fewer_epochs(view)],
        when="policy/clipfrac_avg is above 0.3 in 30 % of the last 50 steps; above 0.5 on average: an error.",
        why="Within one rollout the policy leaves the range in which its old log-probs are useful.",
        remedy="Lower learning_rate, fewer num_ppo_epochs.",
        source="CleanRL; own judgement of the threshold",
    ),
    Rule(
        code="PPO004",
        title="The ratio isn't 1 before the first update",
        stage="probe",
        level="models",
        mutes=("PPO001", "PPO003"),
        needs=(RATIO, SPREAD),
        severity="error",
        test=lambda view: abs(view[RATIO] - 1) > 0.01 or view[SPREAD] > 1e-3,
        message=lambda view: (
            f"Before any update the ratio of the policy to itself is {short(view[RATIO])} on average, with a variance"
            f" of {short(view[SPREAD])}; it should be 1 and 0: old log-probs and new ones are computed differently."
        ),
        remedies=lambda view: set_field(view, "disable_dropout", True, again=True),
        when="val/ratio of the first step is further than 0.01 from 1, or its variance above 0.001.",
        why="Dropout, or a forward pass that depends on how rows are batched: all ratios are off by as much.",
        remedy="Set disable_dropout.",
        source="the definition of the ratio",
    ),
    Rule(
        code="PPO005",
        title="The value loss grows",
        stage="train",
        symptom="divergence",
        level="policy",
        follows_from=("OPT007",),
        mutes=("PPO002",),
        needs=(VALUE,),
        least=10,
        test=value_loss_rises,
        message=lambda view: (
            f"The value loss {went(view.baseline(VALUE) or 0.0, view[VALUE])}, and was over five times that"
            f" {view.often}."
        ),
        remedies=lambda view: [
            lower_rate(view, 3),
            *(set_field(view, "whiten_rewards", True, again=True) if view.mean("objective/kl", 10) > 10 else []),
        ],
        when="loss/value_avg is above five times its beginning in 30 % of the last 50 steps.",
        why="Updates are too large for the value model, or rewards have outgrown it.",
        remedy="Lower learning_rate, whiten_rewards.",
        source="own judgement",
    ),
]


def discount(view: View) -> list[Suspect]:
    """gamma: at least a tenth of the reward reaches the first token of a completion of the length that is seen."""
    length, gamma = view.mean("completions/mean_length", 10), view.config.gamma
    if not view.count("completions/mean_length") or gamma**length >= 0.1:
        return []
    return [
        Suspect(
            field="gamma",
            value=gamma,
            usual="a tenth of the reward or more at the first token",
            explains=("no_signal", "no_learning"),
            source="arXiv 2009.01325: 1",
            new=1.0,
            said=(
                f"gamma is {short(gamma)}, and completions have {short(length)} tokens: {short(100 * gamma**length)} %"
                " of the reward reach the first one"
            ),
            distance=1.0,
        )
    ]


SUSPECTS = [discount]
RULES: list[Rule] = [*OWN, *rollout_rules(SHARED)]


@hookimpl
def ft_rules():
    return RULES
