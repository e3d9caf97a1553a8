"""Names of metrics: a run that logs another is caught, and a right one passes."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import logged

WRONG = [
    Wrong(
        name="a metric that the config doesn't name",
        old='"mean_token_accuracy": mean(',
        new='"token_accuracy": mean(',
        fails="metrics-named",
    )
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught(logged.CHECKS, wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(logged.CHECKS, None, kind, tmp_path) == []
