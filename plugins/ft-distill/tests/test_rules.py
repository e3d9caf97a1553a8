"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_distill.cases import FAULTY, HEALTHY
from ft_distill.config import DistillConfig, GKDConfig
from ft_distill.rules import RULES

from ft_host.testing import Told, codes, evals, findings, in_order, steps


@pytest.mark.parametrize("config_class", [DistillConfig, GKDConfig], ids=["distill", "gkd"])
@pytest.mark.parametrize("code", FAULTY)
def test_faulty(code, config_class):
    [found] = [each for each in findings(RULES, FAULTY[code], config_class) if each.code == code]
    assert found.message and found.remedies
    assert codes(RULES, FAULTY[code], config_class) == {code}


def test_healthy():
    assert codes(RULES, HEALTHY, DistillConfig) == codes(RULES, HEALTHY, GKDConfig) == set()


def test_each_rule_of_its_own_has_a_case():
    assert {rule.code for rule in RULES if rule.code < "DIS100"} == set(FAULTY)


def test_a_student_that_is_there_has_nothing_to_learn():
    told = Told(lines=steps(90, distillation__divergence=0.01, distillation__teacher_agreement=0.99))
    assert codes(RULES, told, DistillConfig) == set()


def test_one_that_moves_away_is_told_to_go_slower():
    lines = steps(90, distillation__divergence=lambda step: 0.2 + 0.01 * step, distillation__teacher_agreement=0.5)
    [found] = findings(RULES, Told(lines=lines), GKDConfig)
    assert (found.code, found.severity) == ("DIS002", "error") and "Lower learning_rate" in found.remedies[0].why


def test_one_that_has_moved_away_within_five_steps_is_told_so_too():
    """As a rate a hundred times too high does: what it is measured by is where it began."""
    said = [1.4, 1.6, 2.2, 2.9, 3.3]
    lines = steps(
        90,
        distillation__teacher_agreement=0.3,
        distillation__divergence=lambda step: said[step - 1] if step <= 5 else 2.1,
    )
    [found] = findings(RULES, Told(lines=lines), DistillConfig)
    assert found.code == "DIS002" and "rose from 1.54 to 2.1 nats a token" in found.message


def test_a_first_step_that_happens_to_be_low_is_no_measure():
    lines = steps(
        90, distillation__teacher_agreement=0.5, distillation__divergence=lambda step: 0.4 if step == 1 else 0.41
    )
    assert codes(RULES, Told(lines=lines), DistillConfig) == {"DIS002"}
    lines = steps(
        90,
        distillation__teacher_agreement=0.5,
        distillation__divergence=lambda step: 0.4 if step == 1 else 0.47 - step / 500,
    )
    assert codes(RULES, Told(lines=lines), DistillConfig) == set()


def test_a_temperature_that_makes_any_teacher_unsure():
    told = FAULTY["DIS005"]
    assert codes(RULES, Told(facts=told.facts, lines=told.lines, config={"temperature": 4.0}), DistillConfig) == set()


def test_completions_that_are_cut_short():
    told = Told(lines=steps(60, completions__clipped_ratio=0.9, completions__mean_length=500.0))
    assert codes(RULES, told, DistillConfig) == {"DIS108"}


def test_a_teacher_that_is_wrong_about_the_task():
    """The student comes nearer to it, and does worse."""
    lines = steps(100, distillation__divergence=lambda step: 0.5 / (1 + step / 20), distillation__teacher_agreement=0.9)
    rewards = {25: 0.6, 50: 0.4, 75: 0.28, 100: 0.25}
    told = Told(lines=in_order(lines, evals(rewards, reward=lambda step: rewards[step])))
    [found] = findings(RULES, told, GKDConfig)
    assert (found.code, found.severity) == ("DIS117", "error") and "earned 0.6 at step 25" in found.message


def test_a_distance_that_stays_while_completions_become_better():
    lines = steps(
        120, distillation__divergence=lambda step: 0.3 + 0.001 * (step % 3), distillation__teacher_agreement=0.9
    )
    rewards = {1: 0.3, 25: 0.3, 50: 0.4, 75: 0.5, 100: 0.6}
    told = in_order(lines, evals(rewards, reward=lambda step: rewards[step]))
    assert codes(RULES, Told(facts={"plan/total_steps": 150}, lines=told), GKDConfig) == set()
    assert codes(RULES, Told(facts={"plan/total_steps": 150}, lines=lines), GKDConfig) == {"DIS002"}
