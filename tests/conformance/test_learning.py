"""Checks about learning: each catches a method that is wrong in this way, and right ones pass."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks.learning import CHECKS

WRONG = [
    Wrong(
        name="a gradient that points the other way",
        old='-(weights * out["logp"]).sum()}',
        new='-(weights * (2 * out["logp"].detach() - out["logp"])).sum()}',
        fails="learning-rows",
    ),
    Wrong(
        name="rewards with the wrong sign",
        kind="rollouts",
        old='return -weights[part] * values["logp"]',
        new='return weights[part] * values["logp"]',
        fails="learning-rows",
    ),
    Wrong(
        name="advantages of the completion beside it",
        kind="rollouts",
        old='{"advantage": found[i]}',
        new='{"advantage": found[i ^ 1]}',
        fails="learning-rows",
    ),
    Wrong(
        name="an end token that isn't supervised",
        old='return tokens if count_targets(tokens["labels"]) else',
        new='tokens["labels"][-1] = -100\n    return tokens if count_targets(tokens["labels"]) else',
        fails="learning-quiet",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(CHECKS, None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert {check.id for check in CHECKS} == {wrong.fails for wrong in WRONG}
