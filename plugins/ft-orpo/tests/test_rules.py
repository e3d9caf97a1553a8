"""The rules of ORPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_orpo.cases import CASES
from ft_orpo.config import ORPOConfig
from ft_orpo.rules import RULES

from ft_host.testing import Told, codes, findings, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, ORPOConfig)
    assert codes(RULES, healthy, ORPOConfig) == set()


def test_a_smaller_beta_is_the_first_remedy_of_displacement():
    found = {each.code: each for each in findings(RULES, CASES["ORPO001"][0], ORPOConfig)}["ORPO001"]
    assert found.remedies[0].patch == {"beta": 0.033}


def test_pairs_that_were_in_the_right_order_from_the_start_are_no_trouble():
    """Nothing grows where there is nothing to learn."""
    told = Told(facts={"plan/total_steps": 80}, lines=steps(80, rewards__accuracies=0.97, rewards__margins=0.2))
    assert codes(RULES, told, ORPOConfig) == set()
