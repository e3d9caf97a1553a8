"""The rules of PPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_ppo.cases import CASES
from ft_ppo.config import PPOConfig
from ft_ppo.rules import RULES

from ft_host.testing import codes


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, PPOConfig)
    assert code not in codes(RULES, healthy, PPOConfig)
