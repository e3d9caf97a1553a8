"""The maths against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ft_grpo.advantages import advantages
from ft_grpo.config import LOSS_TYPES, GRPOConfig
from ft_grpo.losses import DIVISORS, LOSSES, SCALES, Tokens, corrections, highest, kl, off_policy_kept, ratios

# Three rows of 2, 1 and 0 tokens.
ROWS, SIZES = torch.tensor([0, 0, 1]), torch.tensor([2.0, 1.0, 0.0])
TOTALS = {"tokens": 3, "trained": 2, "rows": 3}


def config_of(**fields: Any) -> GRPOConfig:
    return GRPOConfig(**fields)


def tokens_of(q: list[float], gains: list[float], level: str = "token", weights: list[float] | None = None) -> Tokens:
    """Three tokens with these ratios, of a row with gains[0] and one with gains[1]. The old log-probs are -1."""
    old = torch.full((3,), -1.0, dtype=torch.float64)
    logps = (old + torch.tensor(q, dtype=torch.float64).log()).requires_grad_()
    return Tokens(
        logps=logps,
        old_logps=old,
        ratios=ratios(logps - old, ROWS, SIZES, level),
        advantages=torch.tensor(gains, dtype=torch.float64)[ROWS],
        rows=ROWS,
        sizes=SIZES,
        corrections=None if weights is None else torch.tensor(weights, dtype=torch.float64),
    )


def values(name: str, tokens: Tokens, **fields: Any) -> list[float]:
    return LOSSES[name](tokens, config_of(loss_type=name, **fields)).tolist()


def test_the_tables_hold_what_the_config_names():
    assert tuple(sorted(LOSSES)) == tuple(sorted(SCALES)) == tuple(sorted(DIVISORS)) == tuple(sorted(LOSS_TYPES))


def test_clipping():
    """A gain counts up to 1.2 times, and a loss at least 0.8 times."""
    assert values("grpo", tokens_of([1.5, 1.1, 0.5], [2.0, -1.0])) == pytest.approx([-2.4, -2.2, 0.8])
    assert values("grpo", tokens_of([0.5, 1.0, 3.0], [2.0, -1.0])) == pytest.approx([-1.0, -2.0, 3.0])
    assert values("grpo", tokens_of([0.5, 1.5, 3.0], [2.0, -1.0]), epsilon_high=0.4) == pytest.approx([-1.0, -2.8, 3.0])


def test_two_sided_clipping():
    assert values("dapo", tokens_of([0.5, 1.5, 3.0], [2.0, -1.0]), delta=2.0) == pytest.approx([-1.0, -2.4, 2.0])


def test_ratios_of_completions():
    """The geometric mean of 4 and 1 is 2, for both tokens."""
    tokens = tokens_of([4.0, 1.0, 3.0], [1.0, -1.0], "sequence")
    assert tokens.ratios.tolist() == pytest.approx([2.0, 2.0, 3.0])
    tokens.ratios[0].backward()
    assert tokens.logps.grad.tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_cispo_keeps_the_gradient_of_tokens_beyond_its_cap():
    tokens = tokens_of([7.0, 1.0, 0.1], [2.0, -1.0])
    found = LOSSES["cispo"](tokens, config_of(loss_type="cispo"))
    logs = [-1 + math.log(q) for q in (7.0, 1.0, 0.1)]
    assert found.tolist() == pytest.approx([-5 * 2 * logs[0], -2 * logs[1], 0.1 * logs[2]])
    found.sum().backward()
    assert tokens.logps.grad.tolist() == pytest.approx([-10.0, -2.0, 0.1])


def test_sapo():
    """At a ratio of 1 it has the slope of q A, whatever the temperature."""
    tokens = tokens_of([1.0, 1.0, 1.0], [2.0, -1.0])
    found = LOSSES["sapo"](tokens, config_of(loss_type="sapo"))
    assert found.tolist() == pytest.approx([-4.0, -4.0, 2 / 1.05])
    found.sum().backward()
    assert tokens.logps.grad.tolist() == pytest.approx([-2.0, -2.0, 1.0])
    off = values("sapo", tokens_of([1.5, 1.0, 3.0], [2.0, -1.0]), sapo_temperature_neg=2.0)
    assert off[0] == pytest.approx(-8 / (1 + math.exp(-0.5)))
    assert off[2] == pytest.approx(2 / (1 + math.exp(-4.0)))


def phi(w: float, k: float, slope: float) -> float:
    return w**k * math.exp(slope * (1 - w))


def test_vespo():
    """The weight is that of a completion: 1.5 × 2 of the first row."""
    found = values("vespo", tokens_of([1.5, 2.0, 0.5], [2.0, -1.0]))
    first, second = phi(3.0, 2.0, 3.0), phi(0.5, 3.0, 2.0)
    logs = [-1 + math.log(q) for q in (1.5, 2.0, 0.5)]
    assert found == pytest.approx([-first * 2 * logs[0], -first * 2 * logs[1], second * logs[2]])


def test_vespo_takes_the_corrections_into_its_weight():
    """A token that is masked makes the whole completion weigh next to nothing."""
    found = values("vespo", tokens_of([1.0, 1.0, 1.0], [2.0, -1.0], weights=[2.0, 1.0, 0.0]))
    assert found[0] == pytest.approx(2 * phi(2.0, 2.0, 3.0))
    assert found[2] == pytest.approx(-phi(1e-8, 3.0, 2.0)) and abs(found[2]) < 1e-20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("grpo", [1 / 4, 1 / 4, 1 / 2]),
        ("sapo", [1 / 4, 1 / 4, 1 / 2]),
        ("luspo", [1 / 2] * 3),
        ("dr_grpo", [1 / 20] * 3),
        ("dapo", [1 / 3] * 3),
        ("bnpo", [1 / 3] * 3),
        ("cispo", [1 / 3] * 3),
        ("vespo", [1 / 3] * 3),
    ],
)
def test_what_is_divided_by(name, expected):
    """The third row, which has no tokens, is in no denominator."""
    scale = SCALES[name](tokens_of([1, 1, 1], [1, 1]), config_of(max_completion_length=10)) / TOTALS[DIVISORS[name]]
    assert (torch.ones(3) * scale).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_a_step_without_tokens(name):
    none = torch.zeros(0, requires_grad=True)
    rows = torch.zeros(0, dtype=torch.long)
    tokens = Tokens(
        logps=none,
        old_logps=none.detach(),
        ratios=none.exp(),
        advantages=none.detach(),
        rows=rows,
        sizes=torch.zeros(2),
    )
    config = config_of(loss_type=name)
    loss = (LOSSES[name](tokens, config) * SCALES[name](tokens, config)).sum()
    loss.backward()
    assert float(loss.detach()) == 0


def test_kl():
    tokens = tokens_of([2.0, 1.0, 1.0], [1.0, 1.0])
    reference = torch.tensor([-1.0, -1.5, -1.0], dtype=torch.float64)
    plain = [0.5 - math.log(0.5) - 1, math.exp(-0.5) + 0.5 - 1, 0.0]
    assert kl(tokens, reference, config_of(use_bias_correction_kl=False)).tolist() == pytest.approx(plain)
    assert kl(tokens, reference, config_of()).tolist() == pytest.approx([2 * plain[0], plain[1], 0.0])


def test_corrected_kl_has_the_gradient_of_the_kl_itself():
    """Over all tokens of a small vocabulary, sampled by the policy: E[gradient of the estimate] is that of KL."""
    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-0.2, 0.4, 0.1], dtype=torch.float64).log_softmax(0)
    logs = logits.log_softmax(0)
    [exact] = torch.autograd.grad((logs.exp() * (logs - other)).sum(), logits, retain_graph=True)
    tokens = Tokens(
        logps=logs,
        old_logps=logs.detach(),
        ratios=(logs - logs.detach()).exp(),
        advantages=logs.detach(),
        rows=torch.zeros(3, dtype=torch.long),
        sizes=torch.tensor([3.0]),
    )
    for corrected in (True, False):
        estimate = kl(tokens, other, config_of(use_bias_correction_kl=corrected))
        [found] = torch.autograd.grad((logs.exp().detach() * estimate).sum(), logits, retain_graph=True)
        assert torch.allclose(found, exact) is corrected


def test_off_policy_rows_are_left_out_where_they_lost():
    """Mean over the first row of log p_sampler - log p: (1 + 0)/2. Of the second: 0.7."""
    q = [math.exp(-1.0), 1.0, math.exp(-0.7)]
    sampler = torch.full((3,), -1.0, dtype=torch.float64)
    kept = lambda gains, most: off_policy_kept(tokens_of(q, gains), sampler, most).tolist()  # noqa: E731
    assert kept([-1.0, -1.0], 0.6) == [1, 1, 0]
    assert kept([-1.0, -1.0], 0.4) == [0, 0, 0]
    assert kept([1.0, 0.0], 0.4) == [1, 1, 1]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token_truncate", [3.0, 0.5, 1.0]),
        ("token_mask", [0.0, 0.5, 1.0]),
        ("sequence_truncate", [2.0, 2.0, 1.0]),
        ("sequence_mask", [2.0, 2.0, 1.0]),
    ],
)
def test_corrections(how, expected):
    """Ratios of 4, 0.5 and 1: of rows, 2 and 1."""
    old, sampler = torch.tensor([4.0, 0.5, 1.0]).log(), torch.zeros(3)
    config = config_of(importance_sampling_correction=how)
    assert corrections(old, sampler, ROWS, SIZES, config).tolist() == pytest.approx(expected)
    narrow = config_of(
        importance_sampling_correction=how, importance_sampling_clip_max=1.5, importance_sampling_clip_min=1.1
    )
    found = corrections(old, sampler, ROWS, SIZES, narrow).tolist()
    if how.endswith("mask"):
        assert found == [0.0, 0.0, 0.0]
    else:
        assert found == pytest.approx([1.5, 1.1, 1.1] if how.startswith("token") else [1.5, 1.5, 1.1])


def test_the_highest_share_of_values():
    values = torch.tensor([3.0, 0.0, 10.0, 7.0, 1.0, 9.0, 2.0, 8.0, 6.0, 5.0, 4.0], dtype=torch.float64)
    for share, count in ((0.0, 1), (0.1, 2), (0.3, 4), (0.7, 8), (0.25, 3), (1.0, 11)):
        kept = highest(values, share)
        assert sorted(values[kept].tolist()) == sorted(values.tolist())[-count:], share
    assert highest(torch.zeros(0), 0.5).tolist() == []


def test_values_that_differ_by_round_off_are_all_kept_or_none():
    """Three of one context, and a neighbour that is truly lower. The quantile is within the three."""
    tied = [2.0, 2.0 - 2.4e-7, 2.0 + 2.4e-7]
    values = torch.tensor([5.0, *tied, 1.9997, 0.1, 0.0], dtype=torch.float64)
    for share in (0.2, 1 / 3, 0.4, 0.5):
        assert highest(values, share).tolist() == [True] * 4 + [False] * 3, share
    assert highest(values, 0.1).tolist() == [True] + [False] * 6, "none: the quantile is far above them"


# ---------------------------------------------------------------- advantages

NAN = math.nan


def advantages_of(rewards: list[list[float]], groups: list[int], weights: list[float] | None = None, **fields: Any):
    given = torch.tensor(rewards, dtype=torch.float64)
    weights = torch.tensor(weights or [1.0] * given.shape[1], dtype=torch.float64)
    return advantages(given, weights, torch.tensor(groups), config_of(**fields)).tolist()


def test_advantages_of_groups():
    """Groups (1, 3), whose std is sqrt(2), and (0, 0, 6), of mean 2 and std sqrt(12)."""
    rewards, groups = [[1.0], [0.0], [3.0], [0.0], [6.0]], [0, 1, 0, 1, 1]
    apart = [-1.0, -2.0, 1.0, -2.0, 4.0]
    assert advantages_of(rewards, groups, scale_rewards="none") == pytest.approx(apart)
    spread = [math.sqrt(2) if group == 0 else math.sqrt(12) for group in groups]
    expected = [value / (by + 1e-4) for value, by in zip(apart, spread, strict=True)]
    assert advantages_of(rewards, groups) == pytest.approx(expected)
    whole = torch.tensor([1.0, 0, 3, 0, 6]).double().std().item()
    assert advantages_of(rewards, groups, scale_rewards="batch") == pytest.approx([x / (whole + 1e-4) for x in apart])


def test_a_reward_of_none_is_in_no_mean():
    found = advantages_of([[1.0], [NAN], [3.0], [NAN], [7.0], [NAN]], [0, 0, 0, 1, 1, 1], scale_rewards="none")
    assert found == pytest.approx([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert advantages_of([[NAN], [NAN], [2.0], [5.0]], [0, 0, 1, 1])[:2] == [0.0, 0.0]


def test_several_rewards():
    """Of two functions, one of which applies to the first completion alone."""
    rewards = [[1.0, 10.0], [2.0, NAN], [NAN, NAN]]
    found = advantages_of(rewards, [0, 0, 0], [2.0, 0.5], scale_rewards="none")
    assert found == pytest.approx([1.5, -1.5, 0.0])


def test_rewards_that_are_compared_one_by_one():
    """Each reward is a z-score in its group, of ±1/sqrt(2) for pairs; a function that is the same for all adds
    nothing."""
    rewards = [[0.0, 100.0, 5.0], [1.0, 0.0, 5.0], [0.0, 0.0, 5.0], [1.0, 300.0, 5.0]]
    z = math.sqrt(0.5)
    scored = [-z + 3 * z, z - 3 * z, -z - 3 * z, z + 3 * z]
    spread = torch.tensor(scored).double().std().item()
    found = advantages_of(rewards, [0, 0, 1, 1], [1.0, 3.0, 1.0], multi_objective_aggregation="normalize_then_sum")
    assert found == pytest.approx([value / spread for value in scored], rel=5e-4)
