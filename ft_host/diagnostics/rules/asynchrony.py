"""Rollouts that don't wait for training (`rollouts: overlap` and `async`): what waits for what, and how far samples are
from the policy that learns from them. Imports no torch.

Longer than 300 lines: the rules share what they ask of both sides.
"""

from __future__ import annotations

from ft_host.diagnostics.remedies import lower_rate, set_field
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.engines import ERROR, bounded, mend_sampler, moved
from ft_host.diagnostics.view import View, percent, short

FIELDS = ("rollouts",)
ESS, STALENESS, MISMATCH = "rollouts/ess", "rollouts/staleness_mean", "rollouts/mismatch_mean"
WAIT, IDLE, STEP = "perf/rollout_wait_time", "perf/rollout_idle_share", "perf/step_time"
SCORING = "perf/rollout_scoring_share"
DRIFT, FAR = "rollouts/logp_difference", 0.05  # nats a token: see ASY001


def updates(view: View) -> int:
    """The optimizer steps that a rollout is used for."""
    return view.get("plan/updates", 1)


def bound(view: View) -> int:
    now = vars(view.config).get("max_staleness")
    return updates(view) if now is None else now


def usual(view: View, name: str, count: int = 50) -> float:
    """The mean of the last values without the run's first one, in which the other side was started; 0 without any."""
    values = view.recent(name, count)[1 if view.count(name) <= count else 0 :]
    return sum(values) / len(values) if values else 0.0


def waits(view: View) -> float:
    """The share of the trainer's time in which it waited for rollouts."""
    whole = usual(view, STEP, 50 * updates(view)) * updates(view)
    return usual(view, WAIT) / whole if whole > 0 else 0.0


def apart(view: View) -> bool:
    return view.config.rollouts == "async"


def expected(view: View) -> str:
    """What would help, in numbers, where the run has measured it."""
    if "watch/bottleneck" not in view.facts:
        return ""
    step, servers, larger = (view[f"watch/bottleneck_{name}"] for name in ("step", "more_servers", "larger_bound"))
    return (
        f" A step takes {short(step)} s; with generation twice as fast (twice the servers) it would take about"
        f" {short(servers)} s, with a larger max_staleness {short(larger)} s at best."
    )


# ---------------------------------------------------------------- remedies


def fresher(view: View) -> list[Remedy]:
    """A smaller bound, in whole rollouts."""
    now, whole = bound(view), updates(view)
    if now <= whole:
        return []
    new = max(whole, now // 2 // whole * whole)
    said = f"Lower max_staleness from {now} to {new}"
    return [Remedy(why=said, patch={"max_staleness": new}, expected="samples that are nearer to the policy")]


def staler(view: View) -> list[Remedy]:
    now, whole = bound(view), updates(view)
    said = f"Raise max_staleness from {now} to {now + whole}"
    return [Remedy(why=said, patch={"max_staleness": now + whole}, expected="fewer waits")]


def corrected(view: View) -> list[Remedy]:
    """A correction for what sampled, where the method has one that is off."""
    config = vars(view.config)
    if config.get("importance_sampling_correction") == "none":
        said = "Set importance_sampling_correction to token_truncate, from none: weigh tokens by their ratio"
        return [Remedy(why=said, patch={"importance_sampling_correction": "token_truncate"})]
    if "distillation_is_clip" in config and config["distillation_is_clip"] is None:
        said = "Set distillation_is_clip to 2: weigh tokens by their ratio"
        return [Remedy(why=said, patch={"distillation_is_clip": 2.0})]
    return []


def more_workers(view: View) -> list[Remedy]:
    now = vars(view.config).get("reward_workers")
    if now is None:
        return []
    said = f"Raise reward_workers from {now} to {2 * now}"
    return [Remedy(why=said, patch={"reward_workers": 2 * now}, safe=True)]


def for_starved_trainer(view: View) -> list[Remedy]:
    slowest = view.get("watch/bottleneck")
    idle, scoring = view.mean(IDLE), view.mean(SCORING) if view.count(SCORING) else 0.0
    out = []
    if slowest == "rewards" or scoring > 0.3:
        out += more_workers(view)
    if idle - scoring > 0.1:
        out += staler(view)
    if slowest != "rewards":
        out.append(Remedy(why="Sample on more servers or devices, or move some from the trainer to them"))
    return [*out, Remedy(why="Shorten completions (max_completion_length), if most of them end far below it")]


def for_starved_rollouts(view: View) -> list[Remedy]:
    if waits(view) > 0.1:
        return staler(view)
    return [Remedy(why="Give the trainer more devices, or take some from the rollouts: they are done before it is")]


# ---------------------------------------------------------------- tests and messages


def collapsed(view: View) -> bool:
    # Another prompt or a cut distribution samples something else than the policy, at any age: ENG003 says so.
    elsewhere = bool(vars(view.config).get("generate_from_teacher")) or bool(bounded(view))
    return not elsewhere and (not view[ESS] >= 0.3 or not view[DRIFT] <= FAR)


def mismatched(view: View) -> bool:
    return not bounded(view) and moved(
        view[MISMATCH], view.first(MISMATCH, 1) if view.count(MISMATCH) > 1 else None, 0.01
    )


RULES = [
    Rule(
        code="ASY001",
        title="Samples are too far from the policy",
        stage="train",
        level="updates",
        fields=FIELDS,
        needs=(ESS, DRIFT),
        test=collapsed,
        severe=lambda view: not view.mean(ESS) >= 0.1,
        least=5,
        message=lambda view: (
            f"The policy's log-probs differ by {short(view.mean(DRIFT))} nats a token from those of what sampled its"
            f" tokens ({short(view.get(STALENESS, 0.0))} updates ago, this time), and the effective sample size of"
            f" tokens is {percent(view.mean(ESS))} (means; too far apart {view.often})."
        ),
        remedies=lambda view: [*fresher(view), *corrected(view), lower_rate(view)],
        follows_from=("ASY007", "ENG004", "OPT007", "PRB003"),
        when=(
            "rollouts/ess is below 0.3, or rollouts/logp_difference above 0.05 nats a token, in 30 % of the last 50"
            " rollouts; rollouts/ess below 0.1 on average: an error."
        ),
        why=(
            "The ratios of the policy's probabilities to the sampler's are so unequal that a few tokens outweigh all"
            " others. Updates are too large for their age; what is learnt is noise, and a collapse often follows. Small"
            " differences of single tokens add up over a completion: at 0.05 nats a token, one of 40 tokens has a ratio"
            " of up to seven, while the effective sample size of tokens is still near 1."
        ),
        remedy="A smaller max_staleness, a correction for the sampler's probabilities, a lower learning rate.",
        source=(
            "verl rollout correction (0.3); VCPO: collapse is preceded by a low effective sample size; 0.05 nats: runs"
            " of the built-in task that unlearnt had 0.06 in half of their steps, others 0.03 at most in 90 %"
        ),
    ),
    Rule(
        code="ASY002",
        title="The trainer waits for rollouts",
        stage="train",
        symptom="slow",
        level="speed",
        severity="info",
        fields=FIELDS,
        needs=(WAIT, IDLE, STEP),
        test=lambda view: None if view.step < 5 else apart(view) and waits(view) > 0.3,
        share=0.5,
        least=5,
        message=lambda view: (
            f"The trainer waits for rollouts {percent(waits(view))} of its time,"
            f" {short(usual(view, WAIT))} s a rollout." + expected(view)
        ),
        remedies=for_starved_trainer,
        when="With rollouts: async, the trainer waits more than 30 % of its time in half of the last 50 rollouts.",
        why=(
            "Completions or rewards take longer than the updates that learn from them. What would help is in the"
            " message, from what the run has measured."
        ),
        remedy="More servers; more reward_workers where rewards are slow; a larger max_staleness if both sides wait.",
        source="PRIME-RL: wait for batch; own judgement of the share",
    ),
    Rule(
        code="ASY003",
        title="Rollouts wait for the trainer",
        stage="train",
        level="speed",
        severity="info",
        fields=FIELDS,
        needs=(IDLE, SCORING, WAIT, STEP),
        test=lambda view: None if view.step < 5 else apart(view) and view[IDLE] - view[SCORING] > 0.3,
        share=0.5,
        least=5,
        message=lambda view: (
            f"The engine has nothing to do {percent(view.mean(IDLE) - view.mean(SCORING))} of the time: no more is"
            f" begun ahead of the trainer than it needs, and than max_staleness {bound(view)} allows"
            + (f", while the trainer waits {percent(waits(view))} of its time." if waits(view) > 0.1 else ".")
            + expected(view)
        ),
        remedies=for_starved_rollouts,
        when=(
            "With rollouts: async, the engine has neither a request nor rewards or tools to wait for more than 30 % of"
            " the time, in half of the last 50 rollouts."
        ),
        why=(
            "All prompts that were begun are done, and no more is begun than the trainer needs. Where the trainer waits"
            " as well, the bound is too small for what takes long; where it doesn't, training is the slower side."
        ),
        remedy="A larger max_staleness if both sides wait; else move devices to the trainer.",
        source="TRL's backpressure metric; own judgement of the share",
    ),
    Rule(
        code="ASY004",
        title="Samples are as old as the bound allows, for nothing",
        stage="train",
        level="speed",
        severity="info",
        fields=FIELDS,
        needs=(STALENESS, IDLE, WAIT, STEP),
        test=lambda view: (
            apart(view)
            and bound(view) > updates(view)
            and view[STALENESS] > 0.9 * bound(view)
            and view[IDLE] > 0.1
            and waits(view) < 0.05
        ),
        share=0.5,
        least=5,
        message=lambda view: (
            f"Tokens are {short(view.mean(STALENESS))} updates old on average when they are learnt from, and"
            f" max_staleness is {bound(view)}; the trainer waits {percent(waits(view))} of its time: samples lie ready"
            " and age."
        ),
        remedies=fresher,
        when=(
            "With rollouts: async, mean staleness is above 0.9 of the bound while the trainer waits less than 5 % of"
            " its time, in half of the last 50 rollouts; the bound is more than one rollout."
        ),
        why="Where training is the slower side, a larger bound only makes what it learns from older.",
        remedy="A smaller max_staleness: it costs no time as long as the trainer doesn't wait.",
        source="own judgement",
    ),
    Rule(
        code="ASY006",
        title="Late groups are longer",
        stage="train",
        level="speed",
        severity="info",
        fields=FIELDS,
        needs=("rollouts/late_length", "rollouts/on_time_length", "rollouts/late_share"),
        test=lambda view: (
            view["rollouts/late_share"] > 0.05 and view["rollouts/late_length"] > 1.5 * view["rollouts/on_time_length"]
        ),
        share=0.5,
        least=10,
        message=lambda view: (
            f"Completions of groups that were begun under older weights ({percent(view['rollouts/late_share'])} of"
            f" groups) have {short(view['rollouts/late_length'])} tokens, the others"
            f" {short(view['rollouts/on_time_length'])} on average."
        ),
        remedies=lambda view: [
            *set_field(view, "rollout_order", "in_order", ", so that a rollout doesn't begin with what is short"),
            *fresher(view),
        ],
        when="Late groups are half as long again as the others in half of the last 50 rollouts that have both.",
        why=(
            "Long completions take longest, so that they are the stalest. Corrections for staleness then weigh or mask"
            " them more than short ones, which favours short answers."
        ),
        remedy="rollout_order: in_order, a smaller max_staleness; watch completions/mean_length.",
        source="tinker-cookbook issue 822; own judgement of the ratio",
    ),
    Rule(
        code="ASY007",
        title="Engine and trainer disagree with the same weights",
        stage="train",
        level="models",
        fields=FIELDS,
        needs=(MISMATCH,),
        test=mismatched,
        window=5,
        share=0.5,
        least=1,
        severe=lambda view: not view[MISMATCH] <= ERROR,
        message=lambda view: (
            f"Right after an update, with the same weights, the engine's log-probs differ from the policy's by"
            f" {short(view[MISMATCH])} nats a token on average"
            f" ({short(view.get('rollouts/mismatch_max', view[MISMATCH]))} at most): that is no staleness."
        ),
        remedies=mend_sampler,
        mutes=("ASY001", "ENG001", "ENG002"),
        when=(
            "rollouts/mismatch_mean is above 0.1 nats a token, or a hundred times the first value and above 0.01, in"
            " half of the last five comparisons; above 1: an error."
        ),
        why="Another precision, kernel, temperature or template in the sampler, or weights that didn't arrive whole.",
        remedy="The same precision in both; look at how the backend takes weights.",
        source="axolotl docs/training_stability; 2510.26788",
    ),
]
