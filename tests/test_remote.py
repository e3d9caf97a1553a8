"""The trainer's side of a rollout process, over one that is only a list: what is sent when, what is told, and what
becomes of one that dies, hangs or says nothing."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import ConfigError, FtHostError
from ft_host.scheduling import remote
from ft_host.scheduling.apart import limits_of
from ft_host.scheduling.child import Child, Limits
from ft_host.scheduling.place import Opening
from ft_host.scheduling.remote import Remote
from ft_host.scheduling.unit import Failed, Finished, Made, Measured, Progress, Restarted, Started, Unit
from ft_host.types import Request, Sampling

LIMITS = Limits(silence=5.0, stuck=20.0, answer=0.2, restarts=2, pause=0.0)
SAMPLING = Sampling(max_new_tokens=4)


class FakeChild:
    """Keeps what it is sent, and says what the test says."""

    all: list[FakeChild] = []
    answer = None  # what is heard in answer to a message

    def __init__(self, log, environment, heard):
        self.log, self.heard = log, heard
        self.sent, self.silent, self.how, self.lines = [], 0.0, "was killed by SIGKILL", ""
        self.ended = self.stacks = False
        self.process = type("Process", (), {"pid": 4711})()
        FakeChild.all.append(self)

    def send(self, *message):
        self.sent.append(message)
        if FakeChild.answer is not None:
            threading.Thread(target=FakeChild.answer, args=(self, message)).start()

    def end(self, *, politely=False):
        self.ended, self.politely = True, politely

    def how_ended(self):
        return self.how

    def write_stacks(self):
        self.stacks = True

    def last_lines(self):
        return self.lines


@pytest.fixture
def children(monkeypatch):
    monkeypatch.setattr(remote, "Child", FakeChild)
    monkeypatch.setattr(FakeChild, "all", [])
    monkeypatch.setattr(FakeChild, "answer", None)
    return FakeChild.all


def unit(number):
    return Unit(number=number, rollout=0, step=0, rows=[{"group": 0}], epoch=0.0)


def source_of(tmp_path, unfinished=list, weights=None, limits=LIMITS):
    opening = Opening(
        config=None,
        plugins=[],
        backend_config=None,
        diagnostics_config={},
        folder=str(tmp_path),
        positions=None,
        threads=1,
        serves=weights is None,
    )
    return Remote(opening, {}, unfinished, limits, weights)


def progress(number):
    return Progress(unit=number, key="k", token_ids=[1], logprobs=[-1.0], versions=[0])


def finished(number):
    made = Made(rows=[], samples=[], metrics={}, seconds={}, tokens=0, calls=0)
    return Finished(unit=number, made=made, at=1.0)


def measured(at, tokens, running):
    return Measured(at=at, seconds={}, tokens=tokens, running=running, queued=0, scoring=0)


def kinds(child):
    return [message[0] for message in child.sent]


def test_messages_go_out_in_order_and_events_come_in(tmp_path, children):
    source = source_of(tmp_path)
    source.admit([unit(3)])
    source.resume(0, "there")
    [child] = children
    assert child.sent == [("open", source.opening), ("admit", [unit(3)]), ("update", 0, "there")]
    child.heard(("events", [Started(unit=3, at=1.0), progress(3)]))
    assert source.events(0.0) == [Started(unit=3, at=1.0), progress(3)]
    assert source.events(0.0) == []
    source.close()
    assert child.ended and child.politely


def test_a_dead_process_is_started_again_with_the_last_weights_and_what_the_ledger_has(tmp_path, children):
    """The prompts are asked of the ledger only when it has all that the dead process had told."""
    asked = []
    source = source_of(tmp_path, lambda: asked.append(1) or [unit(3), unit(5)])
    source.resume(4, "four")
    source.admit([unit(3), unit(5), unit(6)])
    child = children[0]
    child.heard(("events", [Started(unit=number, at=1.0) for number in (3, 5, 6)] + [progress(5), finished(6)]))
    child.heard(("gone",))
    events = source.events(0.0)
    assert [type(event) for event in events[:5]] == [Started, Started, Started, Progress, Finished]
    assert [(event.unit, event.cause) for event in events if isinstance(event, Failed)] == [
        (3, "engine"),
        (5, "engine"),
    ]
    [said] = [event for event in events if isinstance(event, Restarted)]
    assert "was killed by SIGKILL; it is started again (1 of 2 times), and 2 prompts go on" in said.text
    assert not asked and (said.times, said.why) == (1, "was killed by SIGKILL")
    source.admit([unit(3)])  # tried again, as the ledger says
    source.events(0.0)
    second = children[1]
    assert second.sent == [("open", source.opening), ("update", 4, "four"), ("admit", [unit(3), unit(5)])]
    assert child.ended and asked == [1]
    child.heard(("events", [progress(3)]))  # too late
    assert source.events(0.0) == []


def test_prompts_are_not_asked_for_while_events_of_the_dead_process_wait(tmp_path, children):
    asked = []
    source = source_of(tmp_path, lambda: asked.append(1) or [])
    children[0].heard(("gone",))
    source._look()  # as a question does that is under way when the process dies
    children[0].heard(("events", [progress(1)]))  # was in the pipe
    source._look()
    assert len(children) == 2 and not asked
    assert progress(1) in source.events(0.0) and not asked
    source.events(0.0)
    assert asked == [1]


def test_restarts_are_counted_until_a_prompt_is_completed(tmp_path, children):
    source = source_of(tmp_path)
    for _ in range(2):
        children[-1].heard(("gone",))
        source.events(0.0)
        source.events(0.0)
    children[-1].heard(("events", [Started(unit=1, at=1.0), finished(1)]))
    for _ in range(2):
        children[-1].heard(("gone",))
        source.events(0.0)
        source.events(0.0)
    children[-1].heard(("gone",))
    children[-1].lines = "  Segmentation fault"
    message = (
        r"the rollout process was lost 3 times without completing a prompt, the last time because it was killed by "
        r"SIGKILL \(rollout_retries: engine 2\)\nIts last lines \(.*rollouts.log\):\n  Segmentation fault"
    )
    with pytest.raises(FtHostError, match=message) as raised:
        source.events(0.0)
    assert raised.value.facts["watch/failed"] == "process"
    assert len(children) == 5 and children[-1].ended


def test_what_a_new_process_would_say_too_ends_the_run_at_once(tmp_path, children):
    source = source_of(tmp_path)
    children[0].heard(("broken", ConfigError("reward: there is no file pays.py")))
    children[0].heard(("gone",))
    with pytest.raises(ConfigError, match="no file pays.py"):
        source.events(0.0)
    source = source_of(tmp_path)
    children[1].heard(("broken", FtHostError("memory ran out")))
    children[1].heard(("gone",))
    assert "has failed: memory ran out; it is started again" in source.events(0.0)[-1].text


@pytest.mark.parametrize(
    ("hang", "why"),
    [
        (lambda child: setattr(child, "silent", 6.0), "has shown no sign of life for 6 seconds"),
        (lambda child: child.heard(("beat", 21.0)), "has stood still at one place for 21 seconds"),
        (
            lambda child: child.heard(("events", [measured(1.0, 5, 1), measured(22.5, 0, 1)])),
            "has sampled nothing for 22 seconds, though requests are under way",
        ),
    ],
    ids=["silent", "stuck", "dry"],
)
def test_a_process_that_hangs_is_ended_with_its_stacks(tmp_path, children, hang, why):
    source = source_of(tmp_path)
    child = children[0]
    child.heard(("beat", 0.0))
    source.events(0.0)
    hang(child)
    assert why in source.events(0.0)[-1].text
    assert child.stacks and child.ended


def test_a_process_that_hangs_is_noticed_early_enough_for_another_one_to_do_better():
    def limits(**fields):
        return limits_of(RolloutConfig(model="m", dataset="d", reward=["r"], rollouts="async", **fields))

    assert (limits().silence, limits().stuck, limits().answer) == (60.0, 450.0, 1800.0)
    assert (limits(rollout_timeout=80.0).silence, limits(rollout_timeout=80.0).stuck) == (20.0, 20.0)


def test_only_the_end_of_a_long_log_is_read_and_nothing_of_an_earlier_process(tmp_path):
    child = object.__new__(Child)
    child.log, child.beginning = tmp_path / "rollouts.log", 7
    child.log.write_text("before\nnow\nagain")
    assert child.last_lines() == "  now\n  again"
    child.log.write_text("before\n" + "x" * 10**6 + "\nlast")
    assert child.last_lines().endswith("x\n  last") and len(child.last_lines()) < 70_000


def test_nothing_is_dry_while_nothing_runs_and_importing_may_take_its_time(tmp_path, children):
    source = source_of(tmp_path, limits=dataclasses.replace(LIMITS, answer=60.0))
    children[0].silent = 50.0  # no sign of life yet
    children[0].heard(("events", [measured(1.0, 5, 1), measured(50.0, 0, 0), measured(60.0, 0, 1)]))
    source.events(0.0)
    assert not children[0].ended


def test_questions_are_answered_by_number_and_events_go_on_meanwhile(tmp_path, children, monkeypatch):
    def answer(child, message):
        if message[0] == "generate":
            child.heard(("events", [progress(1)]))
            child.heard(("generated", message[1], ["completion"]))
        elif message[0] == "flush":
            child.heard(("events", [progress(2)]))
            child.heard(("flushed", message[1]))

    monkeypatch.setattr(FakeChild, "answer", staticmethod(answer))
    source = source_of(tmp_path)
    assert source.generate([Request(prompt_ids=[1])], SAMPLING) == ["completion"]
    assert source.flush(1.0) == [progress(1), progress(2)]


def test_a_question_is_asked_again_of_a_new_process_and_an_error_is_raised(tmp_path, children, monkeypatch):
    def answer(child, message):
        if message[0] == "generate":
            first = child is children[0]
            child.heard(("gone",) if first else ("generated", message[1], FtHostError("the prompt has no tokens")))

    monkeypatch.setattr(FakeChild, "answer", staticmethod(answer))
    source = source_of(tmp_path, limits=dataclasses.replace(LIMITS, answer=60.0))
    source.resume(2, "two")
    with pytest.raises(FtHostError, match="the prompt has no tokens"):
        source.generate([Request(prompt_ids=[])], SAMPLING)
    assert kinds(children[0]) == ["open", "update", "generate"] == kinds(children[1])


def test_a_question_has_a_deadline_and_says_what_is_known(tmp_path, children):
    source = source_of(tmp_path)
    children[0].lines = "  loading"
    with pytest.raises(
        FtHostError, match=r"not answered \(generate\) for 0.2 seconds.*\n.*is still loading(.|\n)*loading"
    ):
        source.generate([Request(prompt_ids=[1])], SAMPLING)
    assert source.flush(0.05) == []  # has a patience of its own


def test_a_pause_outlives_a_restart_and_a_resume_ends_it(tmp_path, children, monkeypatch):
    monkeypatch.setattr(
        FakeChild,
        "answer",
        staticmethod(lambda child, message: message[0] == "pause" and child.heard(("paused", message[1]))),
    )
    source = source_of(tmp_path)
    source.resume(1, "one")
    source.pause()
    children[0].heard(("gone",))
    source.events(0.0)
    source.events(0.0)
    assert kinds(children[1])[:3] == ["open", "update", "pause"]
    source.resume(2, "two")
    assert children[1].sent[-1] == ("update", 2, "two")


def test_a_reader_that_missed_a_version_gets_the_whole_and_old_versions_go(tmp_path, children):
    class Folder:
        forgotten: list[int] = []

        def whole(self):
            return tmp_path / "version-3-whole"

        def forget(self, version):
            self.forgotten.append(version)

    source = source_of(tmp_path, weights=Folder())
    source.resume(3, tmp_path / "version-3")
    children[0].heard(("whole", 3, "its checksum is another"))
    source.events(0.0)
    assert children[0].sent[-1] == ("update", 3, str(tmp_path / "version-3-whole"))
    children[0].heard(("have", 3))
    assert Folder.forgotten == [3]
    children[0].heard(("gone",))
    source.events(0.0)
    source.events(0.0)
    assert children[1].sent[1] == ("update", 3, str(tmp_path / "version-3-whole")), "it has nothing that changes are on"
