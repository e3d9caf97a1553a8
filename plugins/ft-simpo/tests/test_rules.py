"""The rules of SimPO and CPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_simpo.cases import CASES
from ft_simpo.config import SimPOConfig
from ft_simpo.rules import RULES

from ft_host.testing import Told, codes, findings, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, SimPOConfig)
    assert codes(RULES, healthy, SimPOConfig) == set()


@pytest.mark.parametrize(("before", "after"), [(0.0, 1.0), (0.5, 1.5)])
def test_more_likelihood_is_the_first_remedy_of_displacement(before, after):
    told = CASES["SIMPO001"][0]
    told = Told(config={"cpo_alpha": before}, facts=told.facts, lines=told.lines)
    found = {each.code: each for each in findings(RULES, told, SimPOConfig)}["SIMPO001"]
    assert found.remedies[0].patch == {"cpo_alpha": after}


def test_pairs_that_were_in_the_right_order_from_the_start_are_no_trouble():
    """Nothing grows where there is nothing to learn."""
    told = Told(facts={"plan/total_steps": 80}, lines=steps(80, rewards__accuracies=0.97, rewards__margins=0.2))
    assert codes(RULES, told, SimPOConfig) == set()
