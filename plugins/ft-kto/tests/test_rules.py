"""The rules of KTO, each on a run that raises it and on one that only looks like it. The numbers are those of runs of
examples/arithmetic: 80 steps of 64 rows at beta 1."""

import pytest
from ft_kto.cases import CASES
from ft_kto.config import KTOConfig
from ft_kto.rules import RULES

from ft_host.testing import codes


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, KTOConfig)
    assert codes(RULES, healthy, KTOConfig) == set()
