"""The rules of best of n, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_bon.cases import CASES
from ft_bon.config import BestOfNConfig
from ft_bon.rules import RULES

import ft_host
from ft_host.testing import Told, codes, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, BestOfNConfig)
    assert code not in codes(RULES, healthy, BestOfNConfig)


def test_candidates_that_are_all_equal_are_found():
    lines = steps(40, reward=0.0, reward_std=0.0, frac_reward_zero_std=1.0, completions__unique_share=0.9)
    assert "BON001" in codes(RULES, Told(config={"reward": ["r"]}, lines=lines), BestOfNConfig)


def test_a_run_in_which_they_are_says_so(make, rewards):
    """It trains on nothing, to its end, and tells why."""
    config = make(BestOfNConfig, reward=[f"{rewards}:same"], max_steps=12)
    found = ft_host.train(config)
    assert found.metrics["best/kept_share"] == 0 and found.metrics["loss"] == 0
    assert "BON001" in {each["code"] for each in found.findings}
