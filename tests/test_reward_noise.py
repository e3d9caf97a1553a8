"""A reward that gives one completion several values: tried twice before training, and seen where completions of a
prompt come twice."""

from __future__ import annotations

import json
import random

import pytest

from ft_host.diagnostics.rules import reward_noise
from ft_host.generation import Completion
from ft_host.metrics import Metric
from ft_host.monitor.reward_check import check_rewards, noise_of, tossed
from ft_host.rollouts.rewards import repeat_metrics
from ft_host.testing.rules import Told, codes, findings, steps

RULES = reward_noise.RULES
NOISE, SPREAD = "rewards__judge__repeat_variance", "rewards__judge__std"
CASES = {
    "REW004": (
        Told(lines=steps(20, **{NOISE: 0.24, SPREAD: 0.5})),
        Told(lines=steps(20, **{NOISE: 0.01, SPREAD: 0.5})),
    ),
    "DATA039": (Told(facts={"data/reward/judge/noise": 0.9}), Told(facts={"data/reward/judge/noise": 0.1})),
}


@pytest.mark.parametrize("code", CASES)
def test_it_is_found_where_it_is_and_not_elsewhere(code):
    faulty, healthy = CASES[code]
    [found] = findings(RULES, faulty)
    assert found.code == code and "eward judge" in found.message and found.remedies and not found.remedies[0].patch
    assert not codes(RULES, healthy)


def test_each_rule_has_a_case():
    assert CASES.keys() == {rule.code for rule in RULES}


def test_one_rollout_is_no_ground():
    """Half of the rollouts have no completion twice: the metric is missing there."""
    assert not codes(RULES, Told(lines=steps(4, **{NOISE: 0.25, SPREAD: 0.5})))


def completion(*ids: int, sampled: tuple[bool, ...] = ()) -> Completion:
    return Completion(token_ids=list(ids), sampled=list(sampled), finish_reason="stop")


def number(metric: Metric) -> float:
    (_, total), (_, count) = metric.parts
    return total / count


def test_half_the_mean_squared_difference_of_equal_completions():
    """Two prompts with three completions each; equal ones of different prompts aren't compared."""
    made = [completion(*ids) for ids in ((1, 2), (1, 2), (3,), (1, 2), (4,), (4,))]
    values = [[1.0, None], [0.0, 2.0], [9.0, 9.0], [5.0, 5.0], [3.0, 1.0], [1.0, 1.0]]
    found = repeat_metrics(["judge", "style"], values, made, 3)
    assert number(found["rewards/judge/repeat_variance"]) == pytest.approx(((1 - 0) ** 2 / 2 + (3 - 1) ** 2 / 2) / 2)
    assert number(found["rewards/style/repeat_variance"]) == 0.0  # one pair; None compares with nothing


def test_nothing_is_told_where_no_completion_comes_twice_or_turns_differ():
    assert repeat_metrics(["judge"], [[1.0], [0.0]], [completion(1), completion(2)], 2) == {}
    turns = [completion(1, 2, sampled=(True, False)) for _ in range(2)]
    assert repeat_metrics(["judge"], [[1.0], [0.0]], turns, 2) == {}


def test_noise_is_a_share_of_the_variance():
    values = [0.0, 1.0, 0.0, 1.0]  # a variance of 0.25
    assert noise_of([(0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0)], values) == 0.0
    assert noise_of([(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)], values) == pytest.approx(0.25 / 0.25)
    assert noise_of([(0.0, 0.0)] * 4, [2.0] * 4) is None  # a constant is DATA010's
    assert noise_of([(None, 1.0), (0.0, None), (1.0, 1.0)], values) is None


def test_what_a_space_changes_counts_where_it_goes_both_ways():
    assert tossed([(0.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]) == pytest.approx(2.0)
    assert tossed([(1.0, 0.0), (0.0, 0.0)] * 4) == 0.0  # a strict reward
    assert tossed([(0.0, 1.0), (1.0, 0.0), (0.0, 1.0), (None, 0.0)]) == 0.0  # one alone is no way


REWARDS = ("right", "chance", "unsure", "signs", "strict", "spaced", "long")


def test_chance_is_told_from_a_function_before_training(tiny, tmp_path):
    from ft_grpo.config import GRPOConfig

    from ft_host.data import load_tokenizer, prompt_row
    from ft_host.data.load import open_train

    (tmp_path / "rewards.py").write_text(
        "import random\n"
        "draw = random.Random(0)\n"
        "def right(completions, answer, **columns):\n"
        "    return [float(str(b) in a) for a, b in zip(completions, answer)]\n"
        "def chance(completions, **columns):\n    return [draw.random() for _ in completions]\n"
        "def unsure(completions, answer, **columns):\n"
        "    return [float(str(b) in a) + 0.05 * draw.random() for a, b in zip(completions, answer)]\n"
        "def signs(completions, **columns):\n"
        "    return [float(sum(map(ord, a)) * 7919 % 64 > 31) for a in completions]\n"
        "def strict(completions, answer, **columns):\n"
        "    return [float(a == str(b)) for a, b in zip(completions, answer)]\n"
        "def spaced(completions, answer, **columns):\n"
        "    return [float(a == str(b) + ' ') for a, b in zip(completions, answer)]\n"
        "def long(completions, **columns):\n    return [len(a) for a in completions]\n"
    )
    rows = [{"prompt": f"what is {n}?", "answer": str(100 * n)} for n in random.Random(0).sample(range(1, 90), 8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = GRPOConfig(
        model=str(tiny / "model"),
        dataset=str(tmp_path / "prompts.jsonl"),
        reward=[f"{tmp_path / 'rewards.py'}:{name}" for name in REWARDS],
    )
    tokenizer = load_tokenizer(config)
    facts = check_rewards(config, open_train(config), lambda row: prompt_row(row, tokenizer, config))
    assert facts["data/reward/right/noise"] == 0 and facts["data/reward/right/most"] == 1
    assert facts["data/reward/chance/noise"] > 0.5
    assert 0 < facts["data/reward/unsure/noise"] < 0.05
    told = {name: facts.get(f"data/reward/{name}/tossed", 0.0) for name in REWARDS}
    assert told.pop("signs") > 0.5 and facts["data/reward/signs/noise"] == 0
    assert told.pop("chance") > 0.5
    assert told.pop("unsure") < 0.05 and not any(told.values())
    found = {each.cause: each.message for each in findings(RULES, Told(facts=facts))}
    assert set(found) == {"chance", "signs"}
    assert (
        "was asked twice" in found["chance"]
        and "white space at their end, higher ones and lower ones" in found["signs"]
    )
