"""The rules of PPO, each on a run that raises it and on one that only looks like it."""

import dataclasses

import pytest
from ft_ppo.cases import CASES
from ft_ppo.config import PPOConfig
from ft_ppo.rules import RULES

from ft_host.testing import codes, findings


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, PPOConfig)
    assert code not in codes(RULES, healthy, PPOConfig)


def test_returns_that_are_all_the_same_have_nothing_to_explain():
    [constant, values] = [CASES[code][0] for code in ("PPO101", "PPO002")]
    lines = [a | b for a, b in zip(constant.lines, values.lines, strict=False)]
    run = dataclasses.replace(values, lines=lines, facts=values.facts | constant.facts)
    states = {each.code: each.state for each in findings(RULES, run, PPOConfig)}
    assert states["PPO101"] == "open" and states["PPO002"] == "muted"
