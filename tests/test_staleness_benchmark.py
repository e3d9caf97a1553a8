"""benchmarks/staleness.py: what its names of runs stand for, and values over seconds."""

from __future__ import annotations

import sys
from array import array
from pathlib import Path

import pytest

from ft_host.rundir.series import Series

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def staleness():
    sys.path.insert(0, str(FOLDER))
    try:
        import staleness

        yield staleness
    finally:
        sys.path.remove(str(FOLDER))


def series(**values: float) -> Series:
    return Series(array("d", [float(step[1:]) for step in values]), array("d", values.values()))


def test_names_of_runs(staleness):
    assert staleness.mode_of("sync") == {"rollouts": "sync"}
    assert staleness.mode_of("overlap-4") == {"rollouts": "overlap", "max_staleness": 4}
    assert staleness.mode_of("async-1-none") == {
        "rollouts": "async",
        "max_staleness": 1,
        "importance_sampling_correction": "none",
    }
    with pytest.raises(SystemExit, match="--run async-1-mask: expected a mode, its bound and none"):
        staleness.mode_of("async-1-mask")


def test_by_the_clock(staleness):
    """An evaluation stands at the end of the step before it, the first one at 0."""
    moved = staleness.by_clock(series(_0=0.4, _2=0.5, _3=0.6), series(_1=2.0, _2=1.0, _3=4.0))
    assert list(moved.steps) == [0, 3, 7] and list(moved.values) == [0.4, 0.5, 0.6]


def test_two_sides_have_an_axis_each(staleness):
    runs = {"one": [series(_0=0.1, _4=0.3), series(_0=0.1, _4=0.5)], "other": [series(_0=0.1, _4=0.2)]}
    drawn = staleness.two_sides("share", {"step": runs, "second": runs}, "what it shows")
    assert "step 4" in drawn and "second 4" in drawn and drawn.count(">one<") == 1
