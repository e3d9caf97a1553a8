"""The rules of DPO, each on a run that raises it and on one that only looks like it. The numbers are those of runs of
examples/arithmetic: 80 steps of 32 pairs, learning rate 3e-4, a model that was tuned on few sums."""

from dataclasses import replace

import pytest
from ft_dpo.cases import CASES, LEARNS, told
from ft_dpo.config import DPOConfig
from ft_dpo.rules import RULES

from ft_host.testing import codes, evals, findings, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, DPOConfig)
    assert codes(RULES, healthy, DPOConfig) == set()


def test_an_sft_term_is_the_first_remedy_of_displacement():
    finding = next(each for each in findings(RULES, CASES["DPO001"][0], DPOConfig) if each.code == "DPO001")
    assert finding.remedies[0].patch == {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}


def test_a_lower_rate_is_the_first_remedy_where_updates_were_large():
    faulty = CASES["DPO001"][0]
    lines = [line | ({"update_ratio": 0.05} if line["step"] == 10 else {}) for line in faulty.lines]
    run = replace(faulty, lines=lines)
    finding = next(each for each in findings(RULES, run, DPOConfig) if each.code == "DPO001")
    assert set(finding.remedies[0].patch) == {"learning_rate"}


def test_held_out_pairs_tell_of_swapped_ones():
    """Where the reference has no opinion."""
    lines = steps(80, **LEARNS | {"logps__rejected": -4.2})
    more = evals([0, 20, 40], **{"rewards/accuracies": lambda step: 0.0 if step == 0 else 0.1})
    assert "DPO004" in codes(RULES, told(lines, more), DPOConfig)
    more = evals([0, 20, 40], **{"rewards/accuracies": lambda step: 0.0 if step == 0 else 0.8})
    assert "DPO004" not in codes(RULES, told(lines, more), DPOConfig)
