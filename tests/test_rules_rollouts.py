"""The rules that methods with rollouts share, over GRPO's names: their words, and what of them mutes what."""

import json
import time
from dataclasses import asdict

import pytest
from ft_grpo.config import GRPOConfig

from ft_host.diagnostics import Engine
from ft_host.diagnostics.shared import Names, rollout_rules
from ft_host.testing.rollout_rules import rollout_cases, stays
from ft_host.testing.rules import Told, codes, findings, steps

NAMES = Names(letters="GRPO")
RULES = rollout_rules(NAMES)
CASES = rollout_cases(NAMES)


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty, GRPOConfig)
    assert code not in codes(RULES, healthy, GRPOConfig)


@pytest.mark.parametrize("code", CASES)
def test_a_finding_can_be_written_and_its_patch_is_of_fields(code):
    for finding in findings(RULES, CASES[code][0], GRPOConfig):
        text = json.dumps(finding.as_dict(asdict(GRPOConfig(**CASES[code][0].config))))
        assert "nan" not in text.lower(), text
        assert finding.message.endswith(".") and all(not remedy.why.endswith((".", "?")) for remedy in finding.remedies)
        for remedy in finding.remedies:
            GRPOConfig(**remedy.patch)


def found(code: str, told: Told):
    return next(each for each in findings(RULES, told, GRPOConfig) if each.code == code)


def test_the_sentence_of_groups_without_a_signal():
    one = found("GRPO001", CASES["GRPO001"][0])
    assert one.severity == "error"
    assert one.message.startswith(
        "Reward variance is near zero in 83 % of groups over the last 10 steps: they teach nothing. "
        "Mean reward is 0.0193; completions have earned 0 to 2, and such groups are near the lower end"
    )
    assert "hard for this model, or the reward misses what is right" in one.message
    assert one.remedies[0].patch == {"dynamic_sampling": True}


def test_the_sentence_of_the_clip_ratio():
    lines = steps(60, clip_ratio__region_mean=lambda step: 0.12 if step % 2 else 0.01)
    one = found("GRPO006", Told(config={"learning_rate": 1e-5}, lines=lines))
    assert one.line().startswith("Warning GRPO006: The clip ratio left its range in 55 % of steps")
    assert one.line().endswith("Lower learning_rate from 1e-5 to 5e-6.")
    assert one.remedies[0].patch == {"learning_rate": 5e-6}


def test_only_the_high_side_clips():
    lines = steps(60, clip_ratio__region_mean=0.12, clip_ratio__high_mean=0.11, clip_ratio__low_mean=0.01)
    patches = [remedy.patch for remedy in found("GRPO006", Told(config={"num_iterations": 2}, lines=lines)).remedies]
    assert patches == [{"learning_rate": 5e-7}, {"epsilon_high": 0.28}, {"num_iterations": 1}]


def test_two_completions_of_a_prompt_are_often_equal():
    told = {"reward": stays, "reward_std": 0.7, "frac_reward_zero_std": 0.6}
    lines = steps(60, **told)
    assert "GRPO001" not in codes(RULES, Told(config={"num_generations": 2}, lines=lines), GRPOConfig)
    assert "GRPO001" in codes(RULES, Told(config={"num_generations": 8}, lines=lines), GRPOConfig)


def test_what_cancels_mutes_what_comes_of_it():
    states = {each.code: (each.state, each.muted_by) for each in findings(RULES, CASES["GRPO002"][0], GRPOConfig)}
    assert states["GRPO002"] == ("open", None) and states["GRPO001"] == ("muted", "GRPO002")


def test_a_run_that_learns_raises_nothing():
    healthy = CASES["GRPO003"][1]
    assert codes(RULES, healthy, GRPOConfig) == set()


def test_it_is_cheap():
    engine = Engine([(rule, "test 0") for rule in RULES], asdict(GRPOConfig()))
    lines = CASES["GRPO004"][1].lines
    started = time.perf_counter()
    for line in lines:
        engine.add_metrics(line)
    assert (time.perf_counter() - started) / len(lines) < 0.0025  # 0.5 % of half a second
