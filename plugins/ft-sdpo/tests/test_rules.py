"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ft_sdpo.cases import FAULTY, HEALTHY, told
from ft_sdpo.config import SDPOConfig
from ft_sdpo.rules import RULES

from ft_host.testing import codes, findings


@pytest.mark.parametrize("code", FAULTY)
def test_faulty(code):
    found = findings(RULES, FAULTY[code], SDPOConfig)
    [mine] = [each for each in found if each.code == code]
    assert mine.message and mine.remedies
    assert codes(RULES, FAULTY[code], SDPOConfig) <= {code, "SDPO002"}  # which follows from SDPO001
    if code == "SDPO001":
        assert any(each.patch == {"success_reward_threshold": 0.4} for each in mine.remedies)


def test_a_policy_that_broke_in_its_first_steps_wants_smaller_ones():
    """As seen on the arithmetic example at a learning rate of 1e-3: 67 % of completions taught at first, none from step
    12 on."""
    case = told(self_distillation__reprompt_sample_fraction=lambda step: max(0.7 - 0.06 * step, 0.0))
    [mine] = [each for each in findings(RULES, case, SDPOConfig) if each.code == "SDPO001"]
    assert "At first it was 58 %" in mine.message
    assert mine.remedies[0].patch == {"learning_rate": 2e-6}


def test_healthy():
    assert codes(RULES, HEALTHY, SDPOConfig) == set()


def test_each_rule_of_its_own_has_a_case():
    assert {rule.code for rule in RULES if rule.code < "SDPO100"} == set(FAULTY)


def test_a_student_that_is_right_already_has_nothing_to_learn_from_its_teacher():
    """What right answers earn was tried before training."""
    case = told({"reward": ["right"]}, count=10, self_distillation__teacher_logp_difference=0.001, reward=1.0)
    tried = replace(case, facts={"data/reward/right/most": 1.0, "data/reward/right/spread": 1.0})
    assert "SDPO005" in codes(RULES, case, SDPOConfig) and "SDPO005" not in codes(RULES, tried, SDPOConfig)
