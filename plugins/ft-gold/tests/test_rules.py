"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_gold.config import GOLDConfig
from ft_gold.rules import RULES

from ft_host.testing.rules import Told, codes, findings, steps

STILL = {"distillation__divergence": lambda step: 0.6 + 0.01 * (step % 2), "distillation__teacher_agreement": 0.5}
FAULTY = {
    "GOLD001": Told(facts={"plan/total_steps": 300}, lines=steps(90, **STILL)),
    "GOLD002": Told(lines=steps(30, distillation__aligned_share=0.2)),
    "GOLD003": Told(lines=steps(30, distillation__matched_mass=0.1)),
    "GOLD004": Told(
        lines=steps(
            60,
            completions__mean_length=lambda step: 60.0 if step < 20 else 4.0,
            completions__clipped_ratio=0.02,
        )
    ),
}
HEALTHY = Told(
    facts={"plan/total_steps": 200},
    lines=steps(
        200,
        distillation__divergence=lambda step: 0.1 + 0.5 / (1 + step / 20),
        distillation__teacher_agreement=lambda step: 0.9 - 0.4 / (1 + step / 20),
        distillation__aligned_share=0.97,
        distillation__matched_mass=0.8,
        completions__mean_length=lambda step: 60.0 - 0.1 * step,
        completions__clipped_ratio=0.05,
        entropy=lambda step: 1.5 - 0.005 * step,
    ),
)


@pytest.mark.parametrize("code", FAULTY)
def test_faulty(code):
    [found] = [each for each in findings(RULES, FAULTY[code], GOLDConfig) if each.code == code]
    assert found.message and found.remedies
    assert codes(RULES, FAULTY[code], GOLDConfig) == {code}


def test_healthy():
    assert codes(RULES, HEALTHY, GOLDConfig) == set()


def test_each_rule_of_its_own_has_a_case():
    assert {rule.code for rule in RULES if rule.code < "GOLD100"} == set(FAULTY)


def test_a_student_that_is_there_has_nothing_to_learn():
    told = Told(lines=steps(90, distillation__divergence=0.01, distillation__teacher_agreement=0.99))
    assert codes(RULES, told, GOLDConfig) == set()


def test_sorted_probabilities_say_nothing_of_agreement():
    """With uld_use_hybrid_loss: false there is no such metric, and the rule does without."""
    told = Told(facts={"plan/total_steps": 300}, lines=steps(90, distillation__divergence=0.6))
    assert codes(RULES, told, GOLDConfig) == {"GOLD001"}


def test_one_that_moves_away_is_told_to_go_slower():
    lines = steps(90, distillation__divergence=lambda step: 0.2 + 0.01 * step, distillation__teacher_agreement=0.5)
    [found] = findings(RULES, Told(lines=lines), GOLDConfig)
    assert (found.code, found.severity) == ("GOLD001", "error") and "Lower learning_rate" in found.remedies[0].why


def test_completions_that_are_cut_short():
    told = Told(lines=steps(60, completions__clipped_ratio=0.9, completions__mean_length=500.0))
    assert codes(RULES, told, GOLDConfig) == {"GOLD108"}
