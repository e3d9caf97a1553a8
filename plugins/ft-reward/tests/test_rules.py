"""The rules of reward modelling, each on a run that raises it and on one that only looks like it. The numbers are those
of runs of examples/arithmetic: 80 steps of 32 pairs."""

import pytest
from ft_reward.cases import CASES, told
from ft_reward.config import RewardConfig
from ft_reward.rules import RULES

from ft_host.testing import codes, findings


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, RewardConfig)
    assert codes(RULES, healthy, RewardConfig) == set()


def test_swapped_pairs_are_told_from_overfitting():
    by_code = {each.code: each for each in findings(RULES, told(0.3), RewardConfig)}
    assert "swapped" in by_code["RM004"].message
    assert "RM001" not in by_code or by_code["RM001"].muted_by == "RM004"
