"""Deadlines count the time in which a process ran: one that was stopped by a scheduler of jobs, or Ctrl-Z, goes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ft_host.errors import FtHostError
from ft_host.scheduling import waiting
from ft_host.scheduling.ledger import Ledger
from ft_host.scheduling.waiting import Post
from ft_host.scheduling.wire import Stillness


def test_a_stopped_trainer_has_not_waited(monkeypatch):
    now, looks = [0.0], [1.0, 4000.0, 1.0, 1.0]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def events(patience):
        now[0] += looks.pop(0)
        return []

    post = Post(
        run=SimpleNamespace(signals=SimpleNamespace(asked=False)),
        ledger=Ledger(quota=1, ahead=1, updates=1),
        failures=None,
        limit=60.0,
        source=SimpleNamespace(events=events, circumstances=str),
    )
    post.begin()
    assert post.wait(lambda: not looks or None, 1e6), "the 4000 seconds of one look are those of a stopped process"
    looks += [1.0] * 100
    with pytest.raises(FtHostError, match="any further for 60 seconds"):
        post.wait(lambda: None, 1e6)
    assert len(looks) == 100 - 48, "13 had passed, of which 10 were the stopped process'"


def test_a_stopped_rollout_process_has_not_stood_still():
    stillness = Stillness()
    assert stillness.at(10.25, 10.0) == 0.25
    assert stillness.at(10.5, 10.0) == 0.5
    assert stillness.at(5000.5, 10.0) == 1.5, "a second, and a stop"
    assert stillness.at(5000.75, 10.0) == 1.75
    assert stillness.at(5001.0, 5000.9) == pytest.approx(0.1), "the next turn"
