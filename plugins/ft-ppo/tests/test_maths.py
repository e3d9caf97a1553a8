"""The maths of PPO against numbers worked out by hand, and against the same thing said another way."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from ft_ppo.config import PPOConfig
from ft_ppo.corrections import sampler_weights
from ft_ppo.method import ESTIMATORS, gae, moments, policy_losses, token_rewards, value_losses, whiten


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Rewards and values of five completions, one of them empty, with 0 after their ends."""
    noise = torch.Generator().manual_seed(seed)
    sizes = [7, 1, 0, 4, 7]
    rewards, values = torch.randn(2, 5, 7, generator=noise, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(sizes)[:, None]
    return rewards * mask, values * mask, sizes


def alone(values: list[float]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


# ---------------------------------------------------------------- the KL penalty


def test_estimators_by_hand():
    logps, ref_logps = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    # k1: log 2 and log 1/2. k3: 1/2 - 1 + log 2 and 2 - 1 - log 2
    two = math.log(2)
    assert ESTIMATORS["k1"](logps, ref_logps).tolist() == pytest.approx([two, -two], rel=1e-6)
    assert ESTIMATORS["k3"](logps, ref_logps).tolist() == pytest.approx([two - 0.5, 1 - two], rel=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_unbiased(name):
    """Averaged over what is sampled they are the divergence itself."""
    noise = torch.Generator().manual_seed(3)
    own, other = torch.randn(2, 11, generator=noise, dtype=torch.float64).log_softmax(-1)
    divergence = float((own.exp() * (own - other)).sum())
    assert float((own.exp() * ESTIMATORS[name](own, other)).sum()) == pytest.approx(divergence, rel=1e-12)
    if name == "k3":
        assert (ESTIMATORS[name](own, other) >= 0).all()


def test_the_score_is_earned_at_the_last_token():
    kl = torch.tensor([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0], [2.0, 4.0, 6.0]])
    found = token_rewards(kl, torch.tensor([3.0, 9.0, -1.0]), torch.tensor([2, 0, 3]), kl_coef=0.5)
    assert found.tolist() == [[-0.25, 3.5, 0.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -4.0]]


# ---------------------------------------------------------------- advantages


def test_gae_by_hand():
    """d = (0.5 + 2/2 - 1, -1 + 3/2 - 2, 4 - 3) = (0.5, -1.5, 1); A_3 = 1, A_2 = -1.5 + 1/4, A_1 = 0.5 - 1.25/4."""
    advantages, returns = gae(alone([0.5, -1.0, 4.0]), alone([1.0, 2.0, 3.0]), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.1875, -1.25, 1.0]]
    assert returns.tolist() == [[1.1875, 0.75, 4.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0), (0.0, 0.7)])
def test_gae_is_a_sum_over_later_errors(gamma, lam):
    """A_t = sum_k (gamma lam)^k d_{t+k}, with d written out, row by row."""
    rewards, values, sizes = ragged()
    advantages, returns = gae(rewards, values, gamma, lam)
    for row, size in enumerate(sizes):
        r, v = rewards[row].tolist(), [*values[row, :size].tolist(), 0.0]
        d = [r[t] + gamma * v[t + 1] - v[t] for t in range(size)]
        expected = [sum((gamma * lam) ** (s - t) * d[s] for s in range(t, size)) for t in range(size)]
        assert advantages[row, :size].tolist() == pytest.approx(expected, rel=1e-12)
        assert returns[row, :size].tolist() == pytest.approx([a + b for a, b in zip(expected, v)], rel=1e-12)  # noqa: B905
        assert not advantages[row, size:].any() and not returns[row, size:].any()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_with_lam_1_a_return_is_what_came_in_the_end(gamma):
    """Whatever the values say."""
    rewards, values, sizes = ragged(1)
    _, returns = gae(rewards, values, gamma, 1.0)
    for row, size in enumerate(sizes):
        expected = [sum(gamma ** (s - t) * float(rewards[row, s]) for s in range(t, size)) for t in range(size)]
        assert returns[row, :size].tolist() == pytest.approx(expected, rel=1e-9)


def test_with_lam_0_a_return_is_the_reward_and_the_next_value():
    rewards, values, _ = ragged(2)
    _, returns = gae(rewards, values, 0.9, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(5, 1)], 1)
    torch.testing.assert_close(returns, rewards + 0.9 * following, rtol=1e-12, atol=1e-15)


def test_with_gamma_0_a_token_is_worth_its_own_reward():
    rewards, values, _ = ragged(3)
    advantages, returns = gae(rewards, values, 0.0, 0.95)
    torch.testing.assert_close(returns, rewards, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(advantages, rewards - values, rtol=1e-12, atol=1e-15)


def test_right_values_leave_no_advantage():
    """Values that are the rewards to come: nothing was better than expected, for any lambda."""
    rewards = alone([0.25, -1.0, 2.0])
    advantages, returns = gae(rewards, alone([1.25, 1.0, 2.0]), 1.0, 0.3)
    assert advantages.tolist() == [[0.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.25, 1.0, 2.0]]


# ---------------------------------------------------------------- whitening


def test_whitening_by_hand():
    """(1, 2, 6): mean 3, squares 4 + 1 + 9, variance 14 / 2."""
    values = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert moments(values, lambda value: [value]) == (3.0, 7.0)
    root = math.sqrt(7 + 1e-8)
    assert whiten(values, 3.0, 7.0).tolist() == pytest.approx([-2 / root, -1 / root, 3 / root], rel=1e-14)
    kept = whiten(values, 3.0, 7.0, shift_mean=False).tolist()
    assert kept == pytest.approx([3 - 2 / root, 3 - 1 / root, 3 + 3 / root], rel=1e-14)


def test_whitening_is_over_all_ranks():
    """What each of three ranks is told, one of which has nothing: numpy's numbers of all values together."""
    noise = numpy.random.default_rng(0)
    every = noise.normal(100.0, 0.01, 50)  # a mean far from nought, which a sum of squares would lose
    ranks = [torch.tensor(part) for part in (every[:13], every[13:13], every[13:])]
    parts = [(len(part), float(part.sum())) for part in ranks]
    average = sum(added for _, added in parts) / 50
    squares = [float((part - average).square().sum()) for part in ranks]
    for part in ranks:
        answers = iter((parts, squares))
        found = moments(part, lambda value, answers=answers: next(answers))
        assert found == pytest.approx((every.mean(), every.var(ddof=1)), rel=1e-10)
    whitened = torch.cat([whiten(part, *found) for part in ranks]).numpy()
    assert whitened == pytest.approx((every - every.mean()) / numpy.sqrt(every.var(ddof=1) + 1e-8), rel=1e-9)


@pytest.mark.parametrize("values", [[], [4.0], [4.0, 4.0, 4.0]])
def test_nothing_to_tell_apart_is_nought(values):
    values = torch.tensor(values, dtype=torch.float64)
    assert whiten(values, *moments(values, lambda value: [value])).tolist() == [0.0] * len(values)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token_truncate", [[3.0, 0.5], [1.0]]),
        ("token_mask", [[0.0, 0.5], [1.0]]),
        ("sequence_truncate", [[2.0, 2.0], [1.0]]),
        ("sequence_mask", [[2.0, 2.0], [1.0]]),
    ],
)
def test_weights_of_what_another_policy_sampled(how, expected):
    """Ratios of 4 and 0.5 in one row, of 1 in the other: of rows, 2 and 1. What is no token counts for nothing."""
    old = torch.tensor([[4.0, 0.5], [1.0, 9.0]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True], [True, False]])

    def weights(**fields: float) -> list[list[float]]:
        config = PPOConfig(importance_sampling_correction=how, **fields)
        found = sampler_weights(old, torch.zeros_like(old), mask, config)
        return [row[kept].tolist() for row, kept in zip(found, mask, strict=True)]

    assert weights() == [pytest.approx(row) for row in expected]
    narrow = weights(importance_sampling_clip_max=1.5, importance_sampling_clip_min=1.1)
    if how.endswith("mask"):
        assert narrow == [[0.0, 0.0], [0.0]]
    else:
        first = [1.5, 1.1] if how.startswith("token") else [1.5, 1.5]
        assert narrow == [pytest.approx(first), pytest.approx([1.1])]


def test_policy_losses_by_hand():
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.1 at a range of 0.2: a gain stops at the edge, a loss doesn't."""
    ratios, advantages = [1.5, 0.5, 1.5, 0.5, 1.1], [2.0, 2.0, -2.0, -2.0, 2.0]
    logps = torch.tensor(ratios, dtype=torch.float64).log().requires_grad_()
    losses, clipped = policy_losses(logps, torch.zeros(5), torch.tensor(advantages, dtype=torch.float64), 0.2)
    assert losses.tolist() == pytest.approx([-2.4, -1.0, 3.0, 1.6, -2.2], rel=1e-12)
    assert clipped.tolist() == [True, False, False, True, False]
    losses.sum().backward()
    assert logps.grad.tolist() == pytest.approx([0.0, -1.0, 3.0, 0.0, -2.2], rel=1e-12)  # -A ratio, or nothing


def test_value_losses_by_hand():
    """Old values of 0 and returns of 1, at a range of 0.5."""
    values = torch.tensor([0.25, 0.75, -1.0, 2.0], dtype=torch.float64).requires_grad_()
    losses, clipped = value_losses(values, torch.zeros(4), torch.ones(4), 0.5)
    # |V - 1| is 0.75, 0.25, 2, 1; of the clipped value 0.75, 0.5, 1.5, 0.5
    assert losses.tolist() == pytest.approx([0.75**2 / 2, 0.5**2 / 2, 2.0, 0.5], rel=1e-12)
    assert clipped.tolist() == [False, True, False, False]
    losses.sum().backward()
    assert values.grad.tolist() == pytest.approx([-0.75, 0.0, -2.0, 1.0], rel=1e-12)


def test_losses_are_those_of_plain_loops():
    noise = torch.Generator().manual_seed(5)
    logps, old, advantages, values, old_values, returns = torch.randn(6, 200, generator=noise, dtype=torch.float64)
    old = logps + 0.3 * old
    policy, policy_clipped = policy_losses(logps, old, advantages, 0.15)
    value, value_clipped = value_losses(values, old_values, returns, 0.3)
    for i in range(200):
        ratio, a = math.exp(float(logps[i] - old[i])), float(advantages[i])
        gain = min(ratio * a, min(max(ratio, 0.85), 1.15) * a)
        assert float(policy[i]) == pytest.approx(-gain, rel=1e-12)
        assert bool(policy_clipped[i]) == (ratio > 1.15 and a > 0 or ratio < 0.85 and a < 0)
        v, v_old, r = float(values[i]), float(old_values[i]), float(returns[i])
        near = v_old + min(max(v - v_old, -0.3), 0.3)
        worse = max((v - r) ** 2, (near - r) ** 2)
        assert float(value[i]) == pytest.approx(worse / 2, rel=1e-12)
        assert bool(value_clipped[i]) == ((near - r) ** 2 > (v - r) ** 2)
    assert 10 < policy_clipped.sum() < 190 and 10 < value_clipped.sum() < 190


@pytest.mark.parametrize("function", [policy_losses, value_losses])
def test_gradients_are_those_of_finite_differences(function):
    noise = torch.Generator().manual_seed(6)
    at, old, third = torch.randn(3, 40, generator=noise, dtype=torch.float64)
    at.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: function(values, old, third, 0.2)[0], (at,))
