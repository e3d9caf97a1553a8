"""The rules of SFT, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_sft.cases import CASES
from ft_sft.config import SFTConfig
from ft_sft.rules import RULES

from ft_host.testing import Told, codes, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, SFTConfig)
    assert code not in codes(RULES, healthy, SFTConfig)


def test_losses_that_are_no_likelihood_have_none():
    lines = steps(60, loss=6.0, entropy=1.1)
    assert codes(RULES, Told(config={"loss_type": "dft"}, lines=lines), SFTConfig) == set()
