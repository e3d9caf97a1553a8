"""The balance of a mixture of experts. Imports no torch.

What a pretrained model brings is not held against it: on narrow data some of its experts rest. What gets worse is.
"""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, rounded, short

SLIGHT = 0.02  # of what is minimised: a balance that the task isn't pulled by


FIND = 40  # steps after the warm-up in which routers may find their balance


def coefficient(view: View) -> tuple[float, str]:
    """Return the weight of the load-balancing loss, the model's own where none is set, and how to say it."""
    now = view.config.router_aux_loss_coef
    if now is not None:
        return now, short(now)
    own = view.get("model/router_aux_loss_coef", 0.0)
    return own, f"{short(own)}, the model's own value,"


def balance_more(view: View) -> list[Remedy]:
    now, said = coefficient(view)
    if now >= 0.1:
        return [Remedy(why="Lower learning_rate, or freeze the routers: balance is asked for strongly already")]
    new = 0.01 if now < 1e-3 else min(0.1, rounded(10 * now))
    return [
        Remedy(
            why=f"Raise router_aux_loss_coef from {said} to {short(new)}",
            patch={"router_aux_loss_coef": new},
            again=True,
            expected="loads that even out within tens of steps",
        )
    ]


def most(view: View) -> float:
    """The violation where one expert of a layer is in every token's choice: of four experts, two a token, 1."""
    return view["model/experts"] / view["model/experts_per_token"] - 1


def settled(view: View) -> bool:
    """Whether routers have had time to find to each other: at first those of new weights send most tokens one way."""
    return view.step >= view.warmup_steps + FIND


def imbalance(view: View) -> bool | None:
    """Over 2, or most of what there can be in a small layer, and over what the run began with by half. Where few
    experts share a token, the most there can be is little: then others must have run empty, or routers be certain."""
    if not settled(view):
        return None
    start, certain = view.get("start/moe/max_violation", 0.0), view.get("start/moe/router_entropy", 0.0) / 2
    if most(view) < 2 and view.get("moe/dead_experts", 0.0) <= 0.05 and view.get("moe/router_entropy", 1.0) >= certain:
        return False
    return view["moe/max_violation"] > max(min(2.0, 0.9 * most(view)), min(1.5 * start, 0.95 * most(view)))


def dead(view: View) -> bool | None:
    if not settled(view) and not view.get("start/moe/dead_experts", 0.0) > 0.25:
        return None
    start, now = view.get("start/moe/dead_experts", 0.0), view["moe/dead_experts"]
    return now > 0.25 or (now > 0.05 and now > start + 0.05)


def aux_dominates(view: View) -> bool | None:
    """Of the loss that the run began with as well: as that falls, what is left of balance becomes a larger share."""
    if view.by_rollout:
        return None
    share = view["moe/aux_share"]
    weighted = share / (1 - share) * abs(view["loss"]) if share < 1 else 0.0
    return share > 0.1 and weighted > 0.1 * view.first("loss", 10)


def weaken(view: View) -> list[Remedy]:
    """To where the balance is about 2 % of what is minimised."""
    now, said = coefficient(view)
    if not now:
        return []
    share = min(view.mean("moe/aux_share"), 0.999)
    new = rounded(now * SLIGHT * (1 - share) / share)
    new = new if new >= 1e-4 else 0.0
    return [
        Remedy(
            why=f"Lower router_aux_loss_coef from {said} to {short(new)}",
            patch={"router_aux_loss_coef": new},
            measured=True,
            expected=f"a balance of about {percent(SLIGHT)} of what is minimised",
        )
    ]


RULES = [
    Rule(
        code="MOE001",
        title="Experts are used unevenly",
        stage="train",
        symptom="imbalance",
        level="policy",
        mutes=("MOE004",),
        needs=("moe/max_violation", "model/experts", "model/experts_per_token"),
        least=10,
        test=imbalance,
        message=lambda view: (
            f"In the worst layer one expert gets {short(1 + view.mean('moe/max_violation'))} times the mean load, "
            f"{short(1 + view.get('start/moe/max_violation', 0.0))} times at the start: uneven {view.often}."
        ),
        remedies=balance_more,
        when=(
            "(largest load - mean) / mean of the worst layer is over 2 (or 90 % of what it can be) and half above"
            f" that of the first step, in 30 % of the last 50 steps, {FIND} steps after the warm-up and later. Where"
            " it can't be 2, since a token goes to many of the experts, only beside experts that get next to nothing"
            " or routers that have become certain."
        ),
        why=(
            "The routers send more and more tokens to few experts; the others learn nothing and the model becomes a"
            " smaller one."
        ),
        remedy="Raise router_aux_loss_coef (1e-3 to 1e-2), lower learning_rate, freeze the routers with LoRA.",
        source="prime-rl (max_vio); threshold by own judgement",
    ),
    Rule(
        code="MOE002",
        title="Experts are dead",
        stage="train",
        symptom="imbalance",
        level="policy",
        needs=("moe/dead_experts",),
        share=0.5,
        least=10,
        test=dead,
        message=lambda view: (
            f"{percent(view.mean('moe/dead_experts'))} of the experts got less than a thousandth of an even share"
            f" {view.often}; {percent(view.get('start/moe/dead_experts', 0.0))} at the start."
        ),
        remedies=balance_more,
        mutes=("MOE001", "MOE003", "MOE004"),
        when=(
            "Over 25 % of the experts, or over 5 % and five points more than at the first step, get less than a"
            f" thousandth of the uniform share in half of the last 50 steps, {FIND} steps after the warm-up and later,"
            " or from the first step on. Asked where that share is 100 tokens or more."
        ),
        why="An expert without tokens has no gradient and doesn't come back by itself.",
        remedy="Raise router_aux_loss_coef, freeze the routers where data is little or narrow.",
        source="own judgement",
    ),
    Rule(
        code="MOE003",
        title="Routers have become certain",
        stage="train",
        symptom="imbalance",
        level="policy",
        mutes=("MOE004",),
        needs=("moe/router_entropy", "start/moe/router_entropy"),
        test=lambda view: view["moe/router_entropy"] < 0.5 * view["start/moe/router_entropy"],
        message=lambda view: (
            f"The routers' entropy is {percent(view['moe/router_entropy'])} of the largest possible,"
            f" {percent(view['start/moe/router_entropy'])} at the start."
        ),
        remedies=balance_more,
        when=(
            "The entropy of the routers' probabilities is below half of that of the first step in 30 % of the last 50"
            " steps."
        ),
        why="Probabilities near 0 and 1 have no gradient: which expert gets a token is settled for good.",
        remedy="Lower learning_rate, raise router_aux_loss_coef, keep routers in float32.",
        source="ST-MoE (arXiv 2202.08906)",
    ),
    Rule(
        code="MOE004",
        title="The balance of experts outweighs the task",
        stage="train",
        level="policy",
        needs=("moe/aux_share", "loss"),
        test=aux_dominates,
        message=lambda view: (
            f"The weighted load-balancing loss is {percent(view.mean('moe/aux_share'))} of what is minimised."
        ),
        remedies=weaken,
        when=(
            "router_aux_loss_coef times the load-balancing loss is over 10 % of the sum, and of the run's first loss,"
            " in 30 % of the last 50 steps; not for methods that learn from rollouts, whose loss is around 0."
        ),
        why="Experts are pulled towards equal loads more than towards the task; short runs and LoRA don't need that.",
        remedy="Lower router_aux_loss_coef, to 0 for short runs with LoRA.",
        source="Unsloth issue 6938; threshold by own judgement",
    ),
]
