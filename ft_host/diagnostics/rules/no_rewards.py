"""Rules about rewards that apply to nothing. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View

TRY = Remedy(
    why="Try the function on a few rows by itself: None means that it doesn't apply, usually since a column is missing,"
    " empty, or written otherwise"
)


def applies_to_none(view: View) -> bool:
    """Whether none of the last ten rollouts has a completion that it applies to."""
    return all(share >= 1 for share in view.recent("rewards/*/none_share", 10))


def remedies(view: View) -> list[Remedy]:
    return [TRY]


RULES = [
    Rule(
        code="REW001",
        title="A reward applies to no completion",
        stage="train",
        level="rewards",
        mutes=("OPT002", "standstill"),
        later=("notes", lambda view: view.get("completions/unrewarded_share", 0) < 1),
        needs=("rewards/*/none_share",),
        test=applies_to_none,
        window=2,
        least=1,
        share=1.0,
        severe=lambda view: view.get("completions/unrewarded_share", 0) >= 1,
        message=lambda view: (
            f"The reward {view.cause} returned None for every completion of a rollout, at step {view.step}: it says"
            " that it doesn't apply to any."
            + (
                " No other reward applies either, so that nothing is learnt."
                if view.get("completions/unrewarded_share", 0) >= 1
                else ""
            )
        ),
        remedies=remedies,
        when="A reward function returns None for all completions, in all of the last ten rollouts.",
        why="None is for rows of another task. A function that returns it for all rewards nothing.",
        remedy="Try the function by itself on rows of the data.",
        source="own judgement",
    ),
    Rule(
        code="REW002",
        title="A reward applies to no held-out completion",
        stage="train",
        level="notes",
        needs=("eval_rewards/*/none_share",),
        test=lambda view: view["eval_rewards/*/none_share"] >= 1,
        window=3,
        least=1,
        share=1.0,
        message=lambda view: (
            f"The reward {view.cause} returned None for every held-out completion, which says that it doesn't apply."
        ),
        remedies=remedies,
        when="A reward function returns None for all completions of an evaluation.",
        why="None is for rows of another task; a mean over no rows doesn't exist.",
        remedy="Try the function by itself on held-out rows.",
        source="own judgement",
    ),
    Rule(
        code="REW003",
        title="No completion has a reward",
        stage="before",
        level="rewards",
        mutes=("REW001", "REW002", "SYS005"),
        needs=("watch/unrewarded",),
        test=lambda view: True,
        severity="error",
        message=lambda view: f"No completion has a reward: {view['watch/unrewarded']} gave no value for any of them.",
        remedies=remedies,
        when="So many completions in a row, or all of an evaluation, have no reward that the run ends.",
        why="Where nothing is rewarded, nothing is learnt and nothing is measured.",
        remedy="Try the functions by themselves on rows of the data.",
        source="own judgement",
    ),
]
