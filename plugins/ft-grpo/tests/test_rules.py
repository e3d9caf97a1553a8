"""The rules of GRPO, each on a run that raises it and on one that only looks like it."""

import pytest
from ft_grpo.cases import CASES
from ft_grpo.config import GRPOConfig
from ft_grpo.rules import RULES

from ft_host.testing import Told, codes, findings, steps


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, GRPOConfig)
    assert code not in codes(RULES, healthy, GRPOConfig)


TRIED = {"data/reward/right/most": 1.0, "data/reward/right/spread": 1.0}


def alike(reward: float, facts: dict) -> Told:
    """A policy that says one thing to each prompt, and always has."""
    lines = steps(
        60,
        reward=reward,
        completions__unique_share=0.13,
        completions__reward_min=reward,
        completions__reward_max=reward,
    )
    return Told(config={"num_generations": 8, "reward": ["right"]}, facts=facts, lines=lines)


def test_a_model_that_earns_what_right_answers_do_may_say_the_same_each_time():
    """What right answers earn is known from the trial before training. Without it, an equal reward says nothing."""
    assert "GRPO012" not in codes(RULES, alike(1.0, TRIED), GRPOConfig)
    assert "GRPO012" in codes(RULES, alike(0.0, TRIED), GRPOConfig)
    assert "GRPO012" in codes(RULES, alike(1.0, {}), GRPOConfig)


def solved(reward: float, facts: dict) -> Told:
    """A policy all of whose completions earn the same, and always have."""
    lines = steps(
        60, reward=reward, reward_std=0.0, frac_reward_zero_std=1.0, completions__unique_share=0.6,
        completions__reward_min=reward, completions__reward_max=reward,
    )  # fmt: skip
    return Told(config={"num_generations": 8, "reward": ["right"]}, facts=facts, lines=lines)


def test_where_all_earn_what_right_answers_do_there_is_nothing_left_to_tell_apart():
    assert not {"GRPO001"} & codes(RULES, solved(1.0, TRIED), GRPOConfig)
    assert "GRPO001" in codes(RULES, solved(0.0, TRIED), GRPOConfig)
    assert "GRPO001" in codes(RULES, solved(1.0, {}), GRPOConfig)


@pytest.mark.parametrize(("share", "most", "masked"), [(0.5, 1.0, True), (1.0, 1.0, False), (0.5, 0.0, False)])
def test_where_all_are_cut_or_earn_the_same_masking_leaves_none_to_learn_from(share, most, masked):
    earned = {"completions__reward_min": 0.0, "completions__reward_max": most}
    told = Told(config={"max_completion_length": 64}, lines=steps(60, completions__clipped_ratio=share, **earned))
    [found] = [each for each in findings(RULES, told, GRPOConfig) if each.code == "GRPO008"]
    assert any("mask_truncated_completions" in each.patch for each in found.remedies) == masked
    assert any("Teach the model to end" in each.why for each in found.remedies) != masked


def test_a_policy_that_forgets_to_end_is_put_down_to_the_setting_that_breaks_it():
    cut = lambda step: 0.02 if step < 6 else 0.6  # noqa: E731
    earned = {"completions__reward_min": 0.0, "completions__reward_max": 1.0}
    told = Told(config={"adam_beta2": 0.1}, lines=steps(60, completions__clipped_ratio=cut, **earned))
    [found] = [each for each in findings(RULES, told, GRPOConfig) if each.code == "GRPO008"]
    assert set(found.remedies[0].patch) == {"adam_beta2"}
