"""Conversations that go on each by itself: what a slow part of one holds up, that the results are those of rounds, and
what is left when one fails. Order is shown by events that would never come otherwise, not by time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pluggy
import pytest
from test_inbox import Counting
from test_turns import TOOLS, Script, called, row_of, tokenizer_of

from ft_host import hookimpl
from ft_host.config.rollout import RolloutConfig
from ft_host.errors import FtHostError
from ft_host.generation import Completion, Request, Sampling
from ft_host.hooks import NAME, generation
from ft_host.rollouts import tool_executor
from ft_host.rollouts.rollout import Rollout, RolloutRun
from ft_host.rollouts.talking import Calls, Turn, each_by_itself, in_rounds
from ft_host.rollouts.tool_executor import ToolExecutor, ToolResult
from ft_host.rollouts.tools import load_tools
from ft_host.rollouts.turns import run_episodes
from ft_host.scheduling.inbox import EngineFailed, Inbox
from ft_host.scheduling.producer import Producer
from ft_host.scheduling.unit import Failed, Finished, Unit

SAMPLING = Sampling(max_new_tokens=8, seed=5)
SOON = 20.0  # seconds after which something that should come at once isn't coming


def answered(number: int, turn: int) -> Completion:
    return Completion(token_ids=[number, turn], finish_reason="stop")


def at_once(request, sampling) -> Future[Completion]:
    future: Future[Completion] = Future()
    future.set_result(answered(request.number, len(request.prompt_ids)))
    return future


def talk(number, *steps):
    """A conversation: each step is a call, or None for a turn of the model. Returns what it was sent."""
    sent, turns = [], 0
    for step in steps:
        if step is None:
            sent.append((yield Turn(Request(prompt_ids=[0] * turns, number=number), turns)).token_ids)
            turns += 1
        else:
            [result] = yield Calls([step])
            sent.append(result.value)
    return sent


# ---------------------------------------------------------------- what is slow


@pytest.mark.parametrize("place", ["before the first turn", "between turns", "after the last turn"])
def test_a_slow_call_holds_up_its_own_conversation_and_no_other(place):
    done = threading.Event()
    slow = partial(done.wait, SOON)  # until the other one is at its end
    steps = {
        "before the first turn": (slow, None, None),
        "between turns": (None, slow, None),
        "after the last turn": (None, None, slow),
    }[place]
    other = (None, lambda: "tool", None, lambda: "tool", None, done.set)
    first, second = each_by_itself([talk(0, *steps), talk(1, *other)], SAMPLING, at_once, ToolExecutor(SOON))
    assert True in first  # the event came: it waited for the other's end
    assert second == [[1, 0], "tool", [1, 1], "tool", [1, 2], None]


def test_a_slow_turn_holds_up_its_own_conversation_and_no_other():
    late: Future[Completion] = Future()

    def submit(request, sampling):
        return late if request.number == 0 else at_once(request, sampling)

    other = talk(1, None, None, lambda: late.set_result(answered(0, 0)))  # answers the other when it is at its end
    assert each_by_itself([talk(0, None), other], SAMPLING, submit, ToolExecutor(SOON)) == [
        [[0, 0]],
        [[1, 0], [1, 1], None],
    ]


def test_noise_of_a_turn_is_that_of_rounds():
    seeds = {"rounds": [], "alone": []}

    def engine(requests, sampling):
        seeds["rounds"] += [(request.number, sampling.seed) for request in requests]
        return [answered(request.number, 0) for request in requests]

    def submit(request, sampling):
        seeds["alone"].append((request.number, sampling.seed))
        return at_once(request, sampling)

    made = [lambda: talk(0, None, None, None), lambda: talk(1, None), lambda: talk(2, None, None)]
    in_rounds([each() for each in made], SAMPLING, engine, ToolExecutor(SOON), bool)
    each_by_itself([each() for each in made], SAMPLING, submit, ToolExecutor(SOON))
    assert sorted(seeds["rounds"]) == sorted(seeds["alone"]) and len(set(seeds["alone"])) == 6


def test_conversations_with_tools_are_the_same_in_rounds_and_by_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(TOOLS)
    tokenizer = tokenizer_of("qwen2_5")
    config = RolloutConfig(
        model="m",
        dataset="d",
        tools=["tools.py:add", "tools.py:fail"],
        environment="tools.py:Counter",
        tool_timeout=SOON,
    )
    toolbox = load_tools(config)
    texts = [
        [called("add", a=2, b=3) + called("increase", by=7), "It is 5."],
        [called("fail", why="no"), called("increase", by=1), "Done."],
        ["At once."],
        [called("nothing"), "Hm."],
    ]
    rows = [row_of(tokenizer, toolbox, group=group, start=5 * group) for group in range(2)]
    script = Script(tokenizer, texts)
    sampling = Sampling(max_new_tokens=1000, seed=7)
    rounds = run_episodes(rows, 2, script, sampling, tokenizer, config, toolbox, bool)
    turns = dict.fromkeys(range(4), 0)

    def submit(request, its):
        future: Future[Completion] = Future()
        future.set_result(script.answer(request, turns[request.number], its))
        turns[request.number] += 1
        return future

    alone = run_episodes(rows, 2, None, sampling, tokenizer, config, toolbox, None, submit=submit)
    assert alone == rounds and [each.calls for each in alone] == [2, 2, 0, 1]
    assert [each.reward for each in alone] == [0.7, 0.1, 0.5, 0.5]


# ---------------------------------------------------------------- what fails


def test_a_failed_turn_ends_the_unit_and_gives_up_what_the_others_wait_for(monkeypatch):
    monkeypatch.setattr(tool_executor, "AT_ONCE", 1)
    go, made, never = threading.Event(), [], Future()
    caller = ToolExecutor(SOON)

    def submit(request, sampling):
        if request.number == 2:
            return never
        future: Future[Completion] = Future()
        future.set_exception(EngineFailed("the server is gone"))
        return future

    busy = caller.start([partial(go.wait, SOON)])  # has the only slot
    talks = [talk(0, lambda: made.append("called")), talk(1, None), talk(2, None)]
    with pytest.raises(EngineFailed, match="the server is gone"):
        each_by_itself(talks, SAMPLING, submit, caller)
    go.set()
    assert busy.result(SOON) == [ToolResult(True)] and never.cancelled()
    assert caller.start([lambda: "next"]).result(SOON) == [ToolResult("next")] and not made


def test_a_reset_that_fails_says_so_and_by_which_cause(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(TOOLS.replace("self.value = start", "self.value = 1 / start"))
    config = RolloutConfig(model="m", dataset="d", environment="tools.py:Counter", tool_timeout=SOON)
    toolbox, tokenizer = load_tools(config), tokenizer_of("qwen2_5")
    rows = [row_of(tokenizer, toolbox, start=0)]
    with pytest.raises(FtHostError, match="Counter: reset failed: ZeroDivisionError") as caught:
        run_episodes(rows, 1, None, SAMPLING, tokenizer, config, toolbox, None, submit=at_once)
    assert caught.value.facts == {"rollout/cause": "environment"}


# ---------------------------------------------------------------- many threads


def test_calls_of_many_threads_share_one_limit_and_each_gets_its_own_results(monkeypatch):
    monkeypatch.setattr(tool_executor, "AT_ONCE", 3)
    caller, lock, found = ToolExecutor(SOON), threading.Lock(), {}
    running = most = 0

    def step(value):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return value

    def ask(thread):
        found[thread] = caller.run([[partial(step, (thread, lane, n)) for n in range(2)] for lane in range(3)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert found == {
        number: [[ToolResult((number, lane, n)) for n in range(2)] for lane in range(3)] for number in range(12)
    }
    assert most == 3


def test_abandoned_calls_of_many_threads_are_counted_once_each_and_too_many_fail_by_cause(monkeypatch):
    monkeypatch.setattr(tool_executor, "MOST_LEFT", 4)
    go, caller = threading.Event(), ToolExecutor(0.05)
    hang = [partial(go.wait, SOON)]
    late = [ToolResult(problem="took longer than 0.05 s")]
    assert [future.result(SOON) for future in [caller.start(hang) for _ in range(4)]] == [late] * 4
    assert len(caller.left) == 4
    with pytest.raises(FtHostError, match="5 calls that took longer than 0.05 s are still running") as caught:
        caller.start(hang).result(SOON)
    assert caught.value.facts == {"rollout/cause": "environment"}
    go.set()


# ---------------------------------------------------------------- a unit's thread


class Method:
    def __init__(self, rollout):
        self.rollout = rollout

    @hookimpl
    def ft_rollout(self, rows, rollout):
        return self.rollout(rows, rollout)


def producer(work, **fields):
    plugins = pluggy.PluginManager(NAME)
    plugins.add_hookspecs(generation)
    plugins.register(Method(work), name="method ft-mine:mine")
    config = RolloutConfig(model="m", dataset="d", **fields)
    told: list = []

    def run(unit, ask, submit):
        return RolloutRun(
            config=config,
            tokenizer=None,
            rank=0,
            world_size=1,
            version=0,
            number=unit.rollout,
            gather=lambda value: [value],
            say=None,
            engine=ask,
            submit=submit,
            pool=None,
            toolbox=None,
            positions=None,
            trainer_state=None,
        )

    return Producer(plugins=plugins, inbox=Inbox(Counting(), told.append, 0), rollout_run=run, emit=told.append), told


def until(made, told, kind):
    """Step until an event of a kind has come; return it."""
    for _ in range(2000):
        made.step(0.01)
        for event in [event for event in told if isinstance(event, kind)]:
            told.remove(event)
            return event
    raise AssertionError(f"no {kind.__name__} among {told}")


def unit() -> Unit:
    row = {"prompt": "p", "prompt_ids": [1], "columns": {}, "group": 0}
    return Unit(number=4, rollout=0, step=0, rows=[row], epoch=0.1)


def test_a_method_that_does_not_come_back_is_given_up_and_its_late_end_not_told():
    go, began, ended, tries = threading.Event(), threading.Event(), threading.Event(), []

    def work(rows, rollout):
        tries.append(1)
        if len(tries) == 1:
            began.set()
            go.wait(SOON)
            ended.set()
        return Rollout(rows=[{"length": 1, "group": 0}])

    made, told = producer(work)
    one = unit()
    made.admit([one])
    assert began.wait(SOON)
    made.working[4].rollout.since -= 1000  # seconds; half of rollout_timeout is 900
    event = until(made, told, Failed)
    assert event.cause == "timeout" and event.unit == 4 and event.error.facts == {"rollout/cause": "timeout"}
    said = str(event.error)
    assert "outside of generate and reward; it is in wait (" in said and "called from work (" in said
    made.admit([one])
    until(made, told, Finished)
    go.set()
    assert ended.wait(SOON)
    for _ in range(3):
        made.step(0)
    assert not [event for event in told if isinstance(event, Failed | Finished)]


def test_a_method_that_waits_for_completions_is_not_given_up():
    def work(rows, rollout):
        completions = rollout.generate(rows, 2)
        return Rollout(rows=[{"length": len(each.token_ids), "group": 0} for each in completions])

    made, told = producer(work)
    made.inbox.pause()  # an update of the weights that takes its time
    made.admit([unit()])
    while made.inbox.queued < 2:
        made.step(0.001)
    made.working[4].rollout.since -= 1000
    made.step(0)
    assert not [event for event in told if isinstance(event, Failed)]
    assert "prompt 4 has waited for its completions and tools for 100" in made.circumstances()
    made.inbox.resume()
    assert len(until(made, told, Finished).made.rows) == 2


def test_an_exit_within_a_method_ends_the_run_and_not_its_thread_alone():
    def work(rows, rollout):
        raise SystemExit("enough")

    made, told = producer(work)
    made.admit([unit()])
    event = until(made, told, Failed)
    assert event.cause is None and "enough" in str(event.error)


def test_an_error_of_one_unit_is_not_taken_for_one_that_all_processes_know():
    def work(rows, rollout):
        error = FtHostError("no server", facts={"rollout/cause": "environment"})
        error.everywhere = True  # as `RolloutRun` marks what its ranks have told each other
        raise error

    made, told = producer(work)
    made.admit([unit()])
    event = until(made, told, Failed)
    assert event.cause == "environment" and not event.error.everywhere


def test_a_conversation_that_fails_while_the_engine_works_for_others_fails_its_unit_alone():
    """With the inbox in between: what the others wait for is withdrawn from the engine, and the unit goes on anew."""
    tries = []

    def work(rows, rollout):
        tries.append(1)

        def fails():
            if len(tries) == 1:
                raise FtHostError("no server", facts={"rollout/cause": "environment"})
            yield Turn(Request(prompt_ids=[1], number=0), 0)

        talks = [talk(1, None), fails()]
        each_by_itself(talks, SAMPLING, rollout.submit, ToolExecutor(SOON))
        return Rollout(rows=[{"length": 1, "group": 0}])

    made, told = producer(work)
    one = unit()
    made.admit([one])
    assert until(made, told, Failed).cause == "environment"
    made.step(0)
    assert not made.inbox.running and not made.inbox.engine.requests
    made.admit([one])
    until(made, told, Finished)


def test_a_thread_that_ends_without_a_word_ends_the_run(monkeypatch):
    made, told = producer(lambda rows, rollout: Rollout(rows=[]))
    monkeypatch.setattr(threading, "excepthook", lambda args: None)

    def broken(unit, attempt, run=made._made):
        run(unit, attempt)
        attempt.end = None  # what follows raises where nothing is caught
        return None

    monkeypatch.setattr(made, "_made", broken)
    made.admit([unit()])
    event = until(made, told, Failed)
    assert event.cause is None and "prompt 4 has ended without a word" in str(event.error)
