"""Each rule on a run that has its trouble, and on one that hasn't."""

from __future__ import annotations

import pytest
from ft_gold.cases import FAULTY, HEALTHY, STILL
from ft_gold.config import GOLDConfig
from ft_gold.rules import RULES

from ft_host.testing import Told, codes, evals, findings, in_order, steps


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


def learnt(rewards: list[float], **config) -> Told:
    """The distance falls; held-out completions earn these."""
    lines = steps(25 * len(rewards), distillation__divergence=lambda step: 0.5 / (1 + step / 20), entropy=0.5)
    at = [25 * (index + 1) for index in range(len(rewards))]
    return Told(config=config, lines=in_order(lines, evals(at, reward=lambda step: rewards[step // 25 - 1])))


def test_a_loss_that_falls_and_a_task_that_is_forgotten():
    """As it goes with `observed` in the example: 0.145, then 0, while the two agree ever more."""
    [found] = findings(RULES, learnt([0.145, 0.0, 0.0], uld_token_merge_strategy="observed"), GOLDConfig)
    assert (found.code, found.severity) == ("GOLD117", "error")
    assert "Held-out completions earned 0.145 at step 25 and earn 0 now" in found.message
    assert found.remedies[0].patch == {"uld_token_merge_strategy": "text"}
    [found] = findings(RULES, learnt([0.6, 0.4, 0.4]), GOLDConfig)
    assert found.severity == "warning" and found.remedies[0].patch == {"uld_crossentropy_weight": 0.5}


@pytest.mark.parametrize("rewards", [[0.2, 0.4, 0.38, 0.41], [0.5, 0.1, 0.6], [0.5, 0.2], [-1.0, -0.8, -0.9]])
def test_evaluations_that_go_up_and_down(rewards):
    assert codes(RULES, learnt(rewards), GOLDConfig) == set()


def test_a_distance_that_stays_while_completions_become_better():
    """As it goes on completions that are all the student's: 0.052 all along in the example, and held-out sums from
    0.275 to 0.7. Without evaluations it can't be told from a run that learns nothing."""
    lines = steps(
        120, distillation__divergence=lambda step: 0.052 + 0.0002 * (step % 3), distillation__teacher_agreement=0.9
    )
    rewards = {1: 0.275, 25: 0.27, 50: 0.46, 75: 0.56, 100: 0.68}
    told = in_order(lines, evals(rewards, reward=lambda step: rewards[step]))
    assert codes(RULES, Told(facts={"plan/total_steps": 150}, lines=told), GOLDConfig) == set()
    assert codes(RULES, Told(facts={"plan/total_steps": 150}, lines=lines), GOLDConfig) == {"GOLD001"}


def test_an_untrained_teacher_is_why_completions_are_cut_and_the_distance_stays():
    """What follows is muted; a temperature far above 1 flattens any teacher."""
    lines = steps(90, distillation__teacher_entropy_share=0.98, completions__clipped_ratio=0.9, **STILL)
    told = Told(facts={"plan/total_steps": 300}, lines=lines)
    found = findings(RULES, told, GOLDConfig)
    assert {(each.code, each.muted_by) for each in found} == {
        ("GOLD005", None),
        ("GOLD001", "GOLD005"),
        ("GOLD108", "GOLD005"),
    }
    hot = Told(lines=steps(30, distillation__teacher_entropy_share=0.98), config={"uld_teacher_temperature": 4.0})
    assert codes(RULES, hot, GOLDConfig) == set()
