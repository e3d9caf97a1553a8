"""A run that stands still says so while it does, where, and afterwards; one that evaluates for long does not."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import ft_host
from ft_host.diagnostics.replay import diagnose
from ft_host.monitor import stall
from ft_host.monitor.place import Place, place_of
from ft_host.monitor.stall import StallDetector
from ft_host.rundir.folder import RunFolder


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A run that notes what it learns, watched with a limit of a fifth of a second."""
    monkeypatch.setattr(stall, "LEAST", 0.2)
    found = StallDetector(run_of(tmp_path))
    found.begin()
    yield found
    found.close()
    assert not found.thread.is_alive()


def run_of(folder: Path, rank: int = 0, world_size: int = 1) -> SimpleNamespace:
    run = SimpleNamespace(folder=RunFolder(folder), step=7, facts={}, rank=rank, world_size=world_size)
    run.record_facts = run.facts.update
    return run


def wait_for(done, limit: float = 5.0) -> None:
    until = time.monotonic() + limit
    while not done() and time.monotonic() < until:
        time.sleep(0.02)


def test_silence_is_told_with_what_the_threads_are_doing(watched):
    watched.stepped(0.01)
    wait_for(lambda: watched.run.facts)
    facts = watched.run.facts
    assert facts["watch/silent_seconds"] >= 0.2 and facts["watch/silent_after_step"] == 7
    assert facts["watch/silent_during"] == "a step" and facts["watch/silent_usual"] == 0.01
    assert "test_stall.py" in facts["watch/silent_place"]
    stacks = Path(watched.run.folder.path / "stacks.txt").read_text()
    assert "after step 7, in a step" in stacks and "test_stall.py" in stacks
    assert "watch/stalls" not in facts and facts["watch/silent_over"] is False


def test_a_standstill_that_passes_stays_known_and_the_longest_is_kept(watched):
    watched.stepped(0.01)
    wait_for(lambda: watched.run.facts)
    time.sleep(0.2)
    watched.run.step = 8
    watched.stepped(0.01)
    facts = watched.run.facts
    assert facts["watch/silent_over"] is True and facts["watch/stalls"] == 1
    longest = facts["watch/stalled_seconds"]
    assert longest >= 0.4 and facts["watch/stalled_after_step"] == 7 and facts["watch/stalled_during"] == "a step"
    assert "test_stall.py" in facts["watch/stalled_place"]
    wait_for(lambda: facts["watch/silent_over"] is False)
    assert facts["watch/silent_after_step"] == 8
    facts["watch/stalled_seconds"] = watched.longest["watch/stalled_seconds"] = 50.0
    watched.stepped(0.01)
    assert facts["watch/stalls"] == 2 and facts["watch/stalled_seconds"] == 50.0
    assert facts["watch/stalled_after_step"] == 7, "that of the longest"


def test_it_is_told_again_when_it_has_lasted_twice_as_long(watched):
    watched.stepped(0.01)
    stacks = watched.run.folder.path / "stacks.txt"
    wait_for(lambda: stacks.is_file() and stacks.read_text().count("in a step") == 2)
    assert stacks.read_text().count("in a step") == 2
    wait_for(lambda: watched.run.facts["watch/silent_seconds"] >= 0.4)
    assert watched.run.facts["watch/silent_seconds"] >= 0.4


def test_a_run_that_goes_on_is_left_alone(watched, monkeypatch):
    monkeypatch.setattr(stall, "LEAST", 0.6)
    for _ in range(40):
        watched.stepped(0.01)
        time.sleep(0.02)
    assert not watched.run.facts


def test_what_takes_longer_than_a_step_may_and_is_measured_by_its_own_kind(watched):
    watched.stepped(0.01)
    with watched.during("an evaluation"):  # the first one: what it takes isn't known
        time.sleep(0.5)
        assert watched.limit == stall.FIRST
    assert not watched.run.facts and watched.limit == 0.2
    with watched.during("an evaluation"):
        assert 5.0 <= watched.limit < 100.0, "ten times the first one"


def test_a_standstill_within_an_evaluation_is_told_as_one(watched):
    with watched.during("an evaluation"):
        pass
    with watched.during("an evaluation"):
        wait_for(lambda: watched.run.facts)
    assert watched.run.facts["watch/silent_during"] == "an evaluation"
    assert watched.run.facts["watch/stalled_during"] == "an evaluation" and watched.doing == "a step"


def test_slow_steps_raise_the_limit_and_so_does_one_that_took_long(watched):
    for _ in range(3):
        watched.stepped(60.0)
    assert watched.limit == 600.0
    watched.stepped(900.0)  # as with a rollout
    assert watched.limit == 2700.0


def test_the_first_step_may_take_long(tmp_path):
    found = StallDetector(run_of(tmp_path))
    assert found.limit == stall.PREPARATION
    found.begin()
    assert found.limit == stall.FIRST
    found.stepped(20.0)
    assert found.limit == 200.0
    found.stepped(0.1)
    assert found.limit == pytest.approx(100.5)
    for _ in range(100):
        found.stepped(0.1)
    assert found.limit == stall.LEAST
    found.close()


@pytest.mark.parametrize("other", [False, True], ids=["it hangs", "it waits too"])
def test_the_rank_that_the_others_wait_for_is_named(tmp_path, monkeypatch, other):
    monkeypatch.setattr(stall, "LEAST", 0.2)
    monkeypatch.setattr(stall, "place_of", lambda thread: Place(text="run.py, line 1, in gather", together=True))
    main = StallDetector(run_of(tmp_path, 0, 2))
    said = {"text": "mine.py, line 3, in slow", "together": other, "step": 7}
    (tmp_path / ".stalled-1.json").write_text(json.dumps(said))
    main.begin()
    main.stepped(0.01)
    wait_for(lambda: main.run.facts)
    expected = "rank 0: run.py, line 1, in gather" if other else "rank 1: mine.py, line 3, in slow"
    assert main.run.facts["watch/silent_place"] == expected
    main.close()


def test_another_rank_writes_its_own_stacks_and_records_no_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(stall, "LEAST", 0.2)
    found = StallDetector(run_of(tmp_path, 1, 2))
    found.begin()
    found.stepped(0.01)
    wait_for(lambda: (tmp_path / ".stalled-1.json").is_file())
    said = json.loads((tmp_path / ".stalled-1.json").read_text())
    assert "test_stall.py" in said["text"] and said["step"] == 7 and not said["together"]
    assert "test_stall.py" in (tmp_path / "stacks-rank-1.txt").read_text()
    found.stepped(0.3)
    assert not (tmp_path / ".stalled-1.json").exists() and not found.run.facts
    found.close()


# ---------------------------------------------------------------- where a thread is


def test_a_wait_within_a_library_is_that_of_its_caller():
    ready, done = threading.Event(), threading.Event()

    def waits():
        ready.set()
        done.wait(10)  # in Python's own threading.py

    thread = threading.Thread(target=waits)
    thread.start()
    ready.wait(10)
    time.sleep(0.05)
    place = place_of(thread.ident)
    done.set()
    thread.join()
    assert "test_stall.py" in place.text and place.text.endswith("in waits") and not place.together


# ---------------------------------------------------------------- whole runs

HANGS = """
import time
@hookimpl
def ft_loss(model, batch, run):
    if run.step == 3 and model.training and not run.state.get("hung"):
        run.state["hung"] = True
        time.sleep(1.5)
    return ft_sft.method.ft_loss(model=model, batch=batch, run=run)
"""


def test_a_run_that_hangs_and_goes_on_has_it_in_its_folder(config, sft_with, monkeypatch):
    for name, value in {"LEAST": 0.6, "STEPS": 0, "LONGEST": 0}.items():
        monkeypatch.setattr(stall, name, value)
    hangs = sft_with(HANGS)
    done = ft_host.train(hangs(**vars(replace(config, eval_dataset=None, save_steps=0, max_steps=5))))
    states = [each["state"] for each in RunFolder.open(done.folder).read("findings.jsonl") if each["code"] == "SYS001"]
    assert states[0] == "open" and states[-1] == "cleared"
    [passed] = [each for each in diagnose(done.folder).findings if each["code"] == "SYS008"]
    assert "after step 3, in a step" in passed["message"] and "in ft_loss" in passed["message"]
    assert "ft_loss" in (done.folder / "stacks.txt").read_text()
    assert not list(done.folder.glob(".stalled*"))
