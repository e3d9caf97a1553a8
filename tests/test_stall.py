"""A run that stands still says so while it does; one that evaluates or saves for long doesn't."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ft_host.monitor import stall
from ft_host.monitor.stall import StallDetector
from ft_host.rundir.folder import RunFolder


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A run that notes what it learns, watched with a limit of a fifth of a second."""
    monkeypatch.setattr(stall, "LEAST", 0.2)
    run = SimpleNamespace(folder=RunFolder(tmp_path), step=7, facts={})
    run.record_facts = run.facts.update
    found = StallDetector(run)
    yield found
    found.close()
    assert not found.thread.is_alive()


def step(watched: StallDetector, seconds: float = 0.01) -> None:
    watched.ft_log({"kind": "train", "perf/step_time": seconds}, watched.run)


def wait_for(done, limit: float = 5.0) -> None:
    until = time.monotonic() + limit
    while not done() and time.monotonic() < until:
        time.sleep(0.02)


def test_silence_is_told_with_what_the_threads_are_doing(watched):
    step(watched)
    wait_for(lambda: watched.run.facts)
    assert watched.run.facts["watch/silent_seconds"] >= 0.2 and watched.run.facts["watch/silent_after_step"] == 7
    stacks = Path(watched.run.folder.path / "stacks.txt").read_text()
    assert "no step for" in stacks and "test_stall.py" in stacks


def test_a_run_that_goes_on_is_left_alone(watched):
    for _ in range(40):
        step(watched)
        time.sleep(0.02)
    assert not watched.run.facts


def test_what_takes_longer_than_a_step_may(watched):
    watched.relax(True)
    time.sleep(0.5)
    assert not watched.run.facts
    watched.relax(False)
    assert watched.limit == 0.2


def test_slow_steps_raise_the_limit(watched):
    for _ in range(3):
        step(watched, seconds=60.0)
    assert watched.limit == 600.0
    assert threading.active_count() >= 2
