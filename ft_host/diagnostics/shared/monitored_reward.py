"""Rules for methods that only watch rewards: what they learn from is another signal, which may teach something else.
Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

from ft_host.diagnostics.remedies import lower_rate, restore
from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.rules.optimisation import update_limits
from ft_host.diagnostics.shared.helpers import Names, broken_by, chance
from ft_host.diagnostics.view import View, short

DIVERGENCE = "distillation/divergence"


def gone(view: View) -> bool | None:
    """Whether the last two evaluations earn three quarters of the best one at most, and less by more than chance makes:
    the best of many was lucky."""
    evals = view.series["eval_reward"]
    peak, last = evals.best(1), evals.finite()[-2:]
    if len(evals) < 3 or peak is None:
        return None
    return max(last) < peak[1] - max(0.25 * abs(peak[1]), 3 * chance(view))


def half_of_best_lost(view: View) -> bool:
    evals = view.series["eval_reward"]
    return max(evals.finite()[-2:]) < evals.best(1)[1] - 0.5 * abs(evals.best(1)[1])


def follows_no_teacher(view: View) -> bool:
    """Whether the student has come no nearer to its teacher, or by steps that were too large. Else what it is taught is
    why it earns less."""
    steps = view.series.get("update_ratio")
    too_large = steps is not None and steps.most > update_limits(view)[1]
    return too_large or not view.mean(DIVERGENCE, 10) < 0.8 * view.first(DIVERGENCE, 3)


def watched_rules(names: Names, mends: Callable[[View], list[Remedy]]) -> list[Rule]:
    """`mends`: what the method has to say about it, first."""
    return [
        Rule(
            code=names.code(17),
            family="rollouts-17",
            title="Held-out reward falls, whatever the loss does",
            stage="train",
            symptom="forgetting",
            level="signal",
            later=("results", follows_no_teacher),
            follows_from=broken_by(names, 15),
            needs=("eval_reward",),
            mutes=("OPT014", names.code(15), "policy"),
            test=gone,
            severe=half_of_best_lost,
            window=2,
            least=1,
            message=lambda view: (
                f"Held-out completions earned {short(view.series['eval_reward'].best(1)[1])} at step"
                f" {view.series['eval_reward'].best(1)[0]:.0f} and earn {short(view['eval_reward'])} now: either the"
                " loss asks for something else than the task, or updates are too large."
            ),
            remedies=lambda view: [*mends(view), restore(view), lower_rate(view)],
            when=(
                "Two evaluations running earn three quarters of the best one's reward at most, and three standard"
                " errors less, of three or more. Half of it: an error."
            ),
            why=(
                "What the loss compares isn't what the reward asks for: a teacher that is wrong about the task or is"
                " asked about something else, or updates that are too large."
            ),
            remedy="Look at samples, go back to a checkpoint, change what is compared.",
            source="own judgement of the threshold",
        )
    ]
