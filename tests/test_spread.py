"""Two stretches of numbers are held apart by their spread."""

from __future__ import annotations

import math
import random

import pytest

from ft_host.diagnostics.spread import errors_apart, fallen, ranks_apart, risen, scatter, trend


def test_scatter_is_around_the_line():
    assert scatter([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0)
    assert scatter([0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(2 / 3))  # the line is 1/3: squares 1/9, 4/9, 1/9, over 1
    assert scatter([1.0, 5.0]) == 0


def test_errors_apart_by_hand():
    before, after = [0.0, 1.0, 0.0], [10.0, 11.0, 10.0]
    assert errors_apart(before, after) == pytest.approx(10 / (math.sqrt(2 / 3) * math.sqrt(2 / 3)))
    assert errors_apart([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == math.inf
    assert errors_apart([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == 0
    # a calm stretch takes the spread of the other one
    assert errors_apart([0.0, 0.0, 0.0], after) == pytest.approx(errors_apart(before, after) + 0.5)


def test_ranks_apart_by_hand():
    assert ranks_apart([1, 2, 3], [4, 5, 6]) == pytest.approx(4.5 / math.sqrt(9 * 7 / 12))
    assert ranks_apart([1, 2, 3], [4, 5, 1e9]) == ranks_apart([1, 2, 3], [4, 5, 6])
    assert ranks_apart([1, 2], [1, 2]) == 0


def test_a_trend_is_more_than_a_step():
    assert trend([1, 2, 3, 4]) == pytest.approx(6 / math.sqrt(4 * 3 * 13 / 18))
    assert trend([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]) < 3 < trend(list(range(10)))


DRAWS = {
    "narrow": lambda dice: dice.gauss(1, 0.02),
    "wide": lambda dice: abs(dice.gauss(1, 0.6)),
    "long tail": lambda dice: dice.lognormvariate(0, 1.2),
    "weighted labels": lambda dice: 0.5 if dice.random() < 0.7 else 1.6 + dice.gauss(0, 0.05),
    "rare rows": lambda dice: 0.3 + 9 * (dice.random() < 0.04),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_what_does_not_change_has_neither_risen_nor_fallen(draw):
    dice = random.Random(f"spread {draw}")
    told = []
    for _ in range(2000):
        values = [DRAWS[draw](dice) for _ in range(30)]
        told += [risen(values[:10], values[10:]), fallen(values[:10], values[10:])]
    assert sum(told) <= 3  # of 4000


def test_what_rises_has():
    dice = random.Random("spread rises")
    for _ in range(100):
        before, after = ([level + dice.gauss(0, 0.2) for _ in range(size)] for level, size in ((1.0, 10), (2.0, 20)))
        assert risen(before, after) and not fallen(before, after) and fallen(after, before)
