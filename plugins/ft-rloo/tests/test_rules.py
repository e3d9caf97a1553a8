"""The rules of RLOO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_rloo.cases import CASES
from ft_rloo.config import RLOOConfig
from ft_rloo.rules import RULES

from ft_host.testing import codes


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, RLOOConfig)
    assert code not in codes(RULES, healthy, RLOOConfig)
