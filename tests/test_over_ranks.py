"""Values of all ranks, and this rank's part of what is made of them."""

from __future__ import annotations

import pytest

from ft_host.api import Run


class Rank:
    """What `Run.over_ranks` reads of a run."""

    def __init__(self, rank, gather):
        self.rank, self.gather = rank, gather

    over_ranks = Run.over_ranks


def test_each_rank_has_its_own_part():
    """Ranks of two values, none and three; the function sees all in the order of ranks."""
    shares = [[3, 1], [], [2, 9, 5]]
    for rank, mine in enumerate(shares):
        run = Rank(rank, lambda value, shares=shares: shares)
        assert run.over_ranks(mine, lambda values: [(value, sum(values)) for value in values]) == [
            (value, 20) for value in mine
        ]


def test_a_function_that_returns_other_than_one_a_value_is_refused():
    run = Rank(0, lambda value: [value, [4]])
    with pytest.raises(ValueError, match="over_ranks: the function returned 1 values for 3"):
        run.over_ranks([1, 2], lambda values: values[:1])
