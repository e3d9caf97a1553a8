"""Rewards that apply to nothing: None for each completion, in training and in evaluation."""

from __future__ import annotations

import pytest

from ft_host.diagnostics.rules import no_rewards
from ft_host.errors import FtHostError
from ft_host.rewards.unrewarded import Unrewarded
from ft_host.rollouts.rewards import no_signal
from ft_host.testing.rules import Told, codes, evals, findings, in_order, steps

RULES = no_rewards.RULES
NEVER = {"rewards__style__none_share": 1.0, "rewards__right__none_share": 0.0}
CASES = {
    "REW001": (Told(lines=steps(1, **NEVER)), Told(lines=steps(30, **(NEVER | {"rewards__style__none_share": 0.9})))),
    "REW002": (
        Told(lines=in_order(steps(4), evals([2, 4], rewards__style__none_share=1.0))),
        Told(lines=in_order(steps(4), evals([2, 4], rewards__style__none_share=0.5))),
    ),
    "REW003": (Told(facts={"watch/unrewarded": "style, right"}), Told()),
}


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty) and code not in codes(RULES, healthy)


def test_the_function_is_named_and_it_is_an_error_where_no_other_applies():
    [one] = findings(RULES, Told(lines=steps(3, **NEVER)))
    assert one.severity == "warning" and one.message.startswith("The reward style returned None for every completion")
    alone = Told(lines=steps(3, rewards__style__none_share=1.0, completions__unrewarded_share=1.0))
    [one] = findings(RULES, alone)
    assert one.severity == "error" and "nothing is learnt" in one.message


def test_a_reward_that_applies_to_every_other_rollout_is_not_named_for_long():
    """Two tasks, a rollout of each in turn."""
    told = Told(lines=steps(12, rewards__style__none_share=lambda step: float(step % 2)))
    assert all(each.state == "cleared" for each in findings(RULES, told))


@pytest.mark.parametrize("most", [0, 3])
def test_completions_without_any_reward_end_the_run_as_failures_do(most):
    """In a row, over several rollouts; one that has a reward begins anew."""
    counted = Unrewarded(most)
    if most:
        counted.add([[None], [None], [None]], ["never"])
        counted.add([[1.0], [None], [None], [None]], ["never"])
    with pytest.raises(FtHostError, match=r"no reward for .* in a row .*: never gave no value") as raised:
        counted.add([[None]], ["never"])
    assert raised.value.facts == {"watch/unrewarded": "never"}


def test_a_rollout_without_a_signal_says_whether_there_were_rewards():
    """With dynamic sampling nothing is left to train on in both cases, for different reasons."""
    none = {"completions/unrewarded_share": 1.0, "rewards/style/none_share": 1.0, "rewards/right/none_share": 1.0}
    assert str(no_signal(none, 3, 8, 2)).startswith(
        "no reward for any completion of 8 prompts, in 2 draws: style, right gave no value"
    )
    equal = {"completions/unrewarded_share": 0.0, "rewards/style/none_share": 0.0, "reward": 0.5}
    assert str(no_signal(equal, 3, 8, 2)).endswith("the method left out every group, at a mean reward of 0.5")
    assert str(no_signal({}, 3, 8, 2)).endswith("(max_rollout_draws): the method left out every group")
    said = str(no_signal(equal | {"frac_reward_zero_std": 1.0}, 3, 8, 2))
    assert said.startswith("rollout 3: none of 8 prompts had a signal") and "equal rewards of 0.5 on average" in said
