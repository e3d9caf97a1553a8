"""The rules of GRPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_grpo.config import GRPOConfig
from ft_grpo.rules import RULES

from ft_host.diagnostics import Names
from ft_host.testing import codes, rollout_cases

CASES = rollout_cases(Names(letters="GRPO"))


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, GRPOConfig)
    assert code not in codes(RULES, healthy, GRPOConfig)
