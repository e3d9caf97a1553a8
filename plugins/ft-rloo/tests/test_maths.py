"""Advantages and losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from ft_rloo.method import clipped, clipped_losses, leave_one_out, normalized

NAN = math.nan


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_leave_one_out():
    """Of 1, 2 and 6 the others' means are 4, 3.5 and 1.5; of 5 and 3 they are each other. In whatever order."""
    rewards, groups = doubles(1, 5, 2, 3, 6), torch.tensor([0, 1, 0, 1, 0])
    same(leave_one_out(rewards, groups), doubles(-3, 2, -1.5, -2, 4.5))


def test_leave_one_out_without_rewards():
    """Those without one are in no mean: of 4, nan and 1 the means are 1 and 4. One alone has nothing to go by."""
    rewards, groups = doubles(4, NAN, 1, 9, NAN, NAN, NAN), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    same(leave_one_out(rewards, groups), doubles(3, NAN, -3, NAN, NAN, NAN, NAN))


def test_leave_one_out_of_nothing():
    assert leave_one_out(doubles(), torch.tensor([], dtype=torch.long)).shape == (0,)


def test_leave_one_out_is_n_over_n_minus_1_times_the_distance_from_the_mean():
    rewards = torch.randn(6, 4, dtype=torch.float64)
    groups = torch.arange(6).repeat_interleave(4)
    same(leave_one_out(rewards.flatten(), groups), (4 / 3 * (rewards - rewards.mean(1, keepdim=True))).flatten())


def test_normalized():
    """1, 2 and 6 have a mean of 3 and a variance of (4 + 1 + 9) / 2 = 7."""
    scale = math.sqrt(7) + 1e-4
    same(normalized(doubles(1, NAN, 2, 6)), doubles(-2 / scale, NAN, -1 / scale, 3 / scale))
    same(normalized(doubles(NAN, NAN)), doubles(NAN, NAN))


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.1, 2.0, -2.2),
        (1.5, 2.0, -2.6),  # no further than 1.3
        (0.5, 2.0, -1.0),  # a likely loss is not clipped
        (1.5, -2.0, 3.0),
        (0.5, -2.0, 1.6),  # no further than 0.8
        (1.5, 0.0, 0.0),
    ],
)
def test_clipped_losses(ratio, advantage, expected):
    logps = doubles(-3.0 + math.log(ratio)).requires_grad_()
    loss = clipped_losses(logps, doubles(-3.0), doubles(advantage), (0.8, 1.3))
    same(loss.detach(), doubles(expected))
    loss.sum().backward()
    counts = not (advantage > 0 and ratio > 1.3 or advantage < 0 and ratio < 0.8)
    same(logps.grad, doubles(-ratio * advantage if counts else 0.0))


def test_gradient_at_the_policy_that_sampled():
    """What the head is given as weights: at a ratio of 1 the derivative is minus the advantage."""
    logps = doubles(-3.0, -40.0, -0.1).requires_grad_()
    clipped_losses(logps, logps.detach(), doubles(1.5, -2.0, 0.0), (0.8, 1.2)).sum().backward()
    same(logps.grad, doubles(-1.5, 2.0, 0.0))


def test_clipped_rewards():
    assert [clipped(value, [-1.0, 2.0]) for value in (-3.0, 0.5, 4.0, None)] == [-1.0, 0.5, 2.0, None]
    assert clipped(4.0, None) == 4.0
