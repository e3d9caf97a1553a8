"""Checks about losses: each catches a method that is wrong in this way, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import losses

WRONG = [
    Wrong(
        name="a sum that nothing divides",
        kind="pairs",
        old='terms={"pairs": pair_losses(chosen, rejected, beta).sum()}',
        new="loss=pair_losses(chosen, rejected, beta).sum()",
        fails="loss-additive",
    ),
    Wrong(
        name="a loss without a gradient",
        kind="pairs",
        old="pair_losses(chosen, rejected, beta).sum()}",
        new="(pair_losses(chosen, rejected, beta) * 0).sum()}",
        fails="loss-finite",
        also=("loss-additive",),
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(losses.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(losses.CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in losses.CHECKS} == {wrong.fails for wrong in WRONG}
