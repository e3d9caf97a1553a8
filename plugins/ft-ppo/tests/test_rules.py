"""The rules of PPO, each on a run that raises it and on one that only looks like it."""

import dataclasses

import pytest
from ft_ppo.cases import CASES
from ft_ppo.config import PPOConfig
from ft_ppo.rules import RULES

from ft_host.testing import Told, codes, findings, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, PPOConfig)
    assert code not in codes(RULES, healthy, PPOConfig)


@pytest.mark.parametrize(
    ("explained", "score", "expected"),
    [
        (lambda step: -1.0 - 0.1 * step, lambda step: 0.3 + 0.003 * step, True),
        (lambda step: min(-4 + 0.08 * step, -0.05), lambda step: 0.3 + 0.003 * step, False),  # it learns to explain
        (-0.6, lambda step: 0.3 + 0.003 * step, False),  # no help, and no harm that would show
        (lambda step: -1.0 - 0.1 * step, lambda step: min(0.3 + 0.02 * step, 0.98), False),  # solved
    ],
)
def test_values_that_are_far_off_are_told_though_the_reward_rises(explained, score, expected):
    lines = steps(
        60,
        val__explained_variance=explained,
        objective__scores=score,
        completions__reward_min=0.0,
        completions__reward_max=1.0,
    )
    assert ("PPO002" in codes(RULES, Told(lines=lines), PPOConfig)) is expected


def test_returns_that_are_all_the_same_have_nothing_to_explain():
    [constant, values] = [CASES[code][0] for code in ("PPO101", "PPO002")]
    lines = [a | b for a, b in zip(constant.lines, values.lines, strict=False)]
    run = dataclasses.replace(values, lines=lines, facts=values.facts | constant.facts)
    states = {each.code: each.state for each in findings(RULES, run, PPOConfig)}
    assert states["PPO101"] == "open" and states["PPO002"] == "muted"
