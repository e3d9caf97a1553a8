"""The rules of online DPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_online_dpo.cases import CASES
from ft_online_dpo.config import OnlineDPOConfig
from ft_online_dpo.rules import RULES

from ft_host.testing import codes


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, OnlineDPOConfig)
    assert code not in codes(RULES, healthy, OnlineDPOConfig)
