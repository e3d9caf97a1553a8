"""What completions are worth: one definition of the metrics of groups, and one sample a completion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl.trainer.utils import nanstd

from ft_host.api import Rewards, groups_differ, sampling_metrics
from ft_host.metrics import Accumulator, combine


def rewards(values: list[list[float | None]], **fields: Any) -> Rewards:
    texts = [f"text {place}" for place in range(len(values))]
    weights = [1.0] * len(values[0]) if values else []
    names = [f"r{index}" for index in range(len(weights))]
    return Rewards(names=names, weights=weights, values=values, texts=texts, metrics={}, extra={}, **fields)


def numbers(*ranks: dict[str, Any]) -> dict[str, float]:
    """Metrics of ranks, as the host reduces them."""
    parts = []
    for metrics in ranks:
        accumulator = Accumulator()
        accumulator.add(metrics)
        parts.append(accumulator.local())
    return combine(parts)


@pytest.mark.parametrize(
    "group,differ",
    [
        ([None, None], None),
        ([1.0, None], None),
        ([0.5, 0.5], False),
        ([0.1, None, 0.1 + 1e-12], False),
        ([0.0, 1e-3], True),
        ([0.0, None, 1e-3], True),
    ],
)
def test_a_group_is_flat_where_it_has_rewards_and_all_are_equal(group, differ):
    assert groups_differ([group], len(group)) == [differ]
    found = numbers(rewards([[value] for value in group]).group_metrics(len(group)))
    assert found["frac_reward_zero_std"] == float(differ is False)


@pytest.mark.parametrize("group", [[None, None], [1.0, None], [0.5, 0.5], [0.0, 1.0]])
def test_the_share_of_groups_differ_is_trls(group):
    """As its trainers compute it: nan, the deviation of fewer than two rewards, isn't close to 0."""
    deviation = nanstd(torch.tensor([[torch.nan if value is None else value for value in group]]), dim=1)
    theirs = torch.isclose(deviation, torch.zeros_like(deviation)).float().mean().item()
    assert numbers(rewards([[value] for value in group]).group_metrics(2))["frac_reward_zero_std"] == theirs


def test_several_rewards_are_compared_one_by_one_where_a_method_does():
    """The two rewards of the first group cancel: their sum is flat, each of them isn't."""
    values = [[1.0, 0.0], [0.0, 1.0], [0.5, None], [0.5, 2.0]]
    made = rewards(values)
    columns = list(zip(*values, strict=True))
    assert groups_differ([made.totals()], 2) == [False, True]
    assert groups_differ(columns, 2) == [True, False]
    assert numbers(made.group_metrics(2, columns))["frac_reward_zero_std"] == 0.5


def test_metrics_of_groups_over_ranks():
    found = numbers(
        rewards([[1.0], [3.0], [2.0], [None]]).group_metrics(2), rewards([[4.0], [4.0]]).group_metrics(2), {}
    )
    assert found["reward"] == pytest.approx(14 / 5)
    assert found["reward_std"] == pytest.approx((6.8 / 4) ** 0.5)
    assert found["frac_reward_zero_std"] == pytest.approx(1 / 3)


def test_single_completions_have_no_groups_and_no_rows_no_metrics():
    assert set(rewards([[1.0], [2.0]]).group_metrics()) == {"reward", "reward_std"}
    assert numbers(rewards([]).group_metrics(4), rewards([[1.0], [2.0]]).group_metrics(2)) == numbers(
        rewards([[1.0], [2.0]]).group_metrics(2)
    )


def test_a_sample_a_completion():
    made = Rewards(
        names=["length", "right"],
        weights=[1.0, 0.5],
        values=[[1.0, None], [2.0, 1.0], [3.0, 0.0], [4.0, 1.0]],
        texts=["a", "bb", "ccc", "dddd"],
        metrics={},
        extra={"first": ["a", "b", "c", "d"]},
    )
    samples = made.samples([{"prompt": "x"}, {"prompt": "y"}])
    assert [sample["prompt"] for sample in samples] == ["x", "x", "y", "y"]
    assert samples[2] == {
        "prompt": "y",
        "completion": "ccc",
        "rewards": {"length": 3.0, "right": 0.0},
        "extra": {"first": "c"},
    }
    assert rewards([]).samples([]) == []


def test_the_samplers_difference_of_targets_and_of_rows():
    apart = torch.tensor([0.5, 0.0, 0.25, 0.25])
    rows = sampling_metrics(torch.tensor([0.5, 0.5]), 4, torch.tensor([0.5, 0.25]))
    for found in (numbers(sampling_metrics(apart, 4)), numbers(rows)):
        assert found == {"sampling/sampling_logp_difference/mean": 0.25, "sampling/sampling_logp_difference/max": 0.5}
    assert sampling_metrics(apart[:0], 0) == {}
