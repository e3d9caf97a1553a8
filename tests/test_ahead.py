"""Rollouts ahead of the training, over an engine that counts: which prompts a rollout takes, how old their tokens are,
that none is lost or learnt twice, and what a checkpoint keeps.

The prompt of row n is [n + 1]; its completion is as long as the test says, and token t of it is 1000 (n + 1) + t.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from ft_host import data, hookimpl
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.data.stream import TrainStream
from ft_host.errors import ConfigError, FtHostError, HookError
from ft_host.hooks import NAME, generation, loss
from ft_host.metrics import mean
from ft_host.rollouts.buffer import Buffer, place_of
from ft_host.rollouts.rollout import Rollout
from ft_host.rollouts.session import RolloutSession
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.scheduling.dealing import kept_units
from ft_host.scheduling.opening import rollouts_of
from ft_host.testing.rows import write_rows
from ft_host.types import Piece, Request, Sampling


@dataclasses.dataclass(kw_only=True)
class Config(RolloutConfig):
    prompts: int = 2
    steps: int = 1

    def rollout_plan(self, processes):
        return RolloutPlan(prompts=self.prompts, generations=2, steps=self.steps, passes=1)


class Counting:
    """An engine: at each poll every request gets one token, until it is as long as `length(prompt)` says."""

    def __init__(self, length):
        self.length, self.requests, self.version = length, {}, None
        self.sampled: Counter = Counter()  # of each (prompt, number)
        self.closed = self.interrupted = False
        self.post = None

    def all_here(self) -> bool:
        """Whether each prompt that is under way has both its requests here: so tests don't depend on threads."""
        producer = self.post.source.producer
        alive = {number for number, thread in list(producer.threads.items()) if thread.is_alive()}
        here = Counter(request.prompt_ids[0] - 1 for request, _ in self.requests.values())
        return not producer.waiting and all(here[number] == 2 for number in alive)

    def submit(self, key, request, sampling):
        self.requests[key] = (request, 0)

    def poll(self, patience):
        if self.interrupted:
            self.interrupted = False
            self.requests.clear()
            return []
        if not self.all_here():
            time.sleep(0.0005)
            return []
        pieces = []
        for key, (request, done) in list(self.requests.items()):
            first, at = request.prompt_ids[0], request.offset + done
            self.sampled[first, request.number] += 1
            last = at + 1 == self.length(first - 1)
            pieces.append(
                (key, Piece(token_ids=[1000 * first + at], logprobs=[-1.0], finish_reason="stop" if last else None))
            )
            self.requests[key] = (request, done + 1)
            if last:
                del self.requests[key]
        return pieces

    def withdraw(self, key):
        self.requests.pop(key, None)

    def interrupt(self):
        self.interrupted = True

    def update(self, version, weights):
        self.version = version

    def close(self):
        self.closed = True


class Method:
    """Two completions of each prompt; `signal` says which prompts are kept."""

    def __init__(self, length, signal=lambda number: True):
        self.engine = Counting(length)
        self.signal = signal

    @hookimpl
    def ft_engine(self, place):
        return self.engine

    @hookimpl
    def ft_rollout(self, rows, rollout):
        completions = rollout.generate(rows, 2)
        made = []
        for index, completion in enumerate(completions):
            row = rows[index // 2]
            if self.signal(row["number"]):
                made.append(
                    {
                        "group": row["group"],
                        "number": row["number"],
                        "length": 1,
                        "completion_ids": completion.token_ids,
                        "versions": completion.versions,
                    }
                )
        return Rollout(rows=made, metrics={"kept": mean(len(made), 2 * len(rows))})


@pytest.fixture
def make(tmp_path, monkeypatch):
    """The buffer of a run over numbered prompts, without a model."""
    monkeypatch.setattr("ft_host.scheduling.ahead.mismatch_metrics", lambda rows, run, generate: {})

    def made(length=lambda n: 3, signal=lambda n: True, rows=12, at=(None, None), **fields):
        file = tmp_path / f"prompts-{rows}.jsonl"
        if not file.exists():
            write_rows(file, [{"number": number} for number in range(rows)])
        given = {
            "model": "m",
            "dataset": str(file),
            "progress": "quiet",
            "train_sampling_strategy": "sequential",
            "num_train_epochs": 1.0,
            "rollouts": "overlap",
            "reward": [],
        }
        config = Config(**(given | fields))
        method = Method(length, signal)
        plugins = pluggy.PluginManager(NAME)
        for spec in (generation, loss):
            plugins.add_hookspecs(spec)
        plugins.register(method)
        (tmp_path / "run").mkdir(exist_ok=True)
        accelerator = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
        run = Run(
            config=config,
            folder=RunFolder(tmp_path / "run"),
            tokenizer=None,
            plugins=plugins,
            accelerator=accelerator,
            policy=None,
            model=None,
            rollouts=config.rollout_plan(1),
        )
        session = RolloutSession(config=config, pool=SimpleNamespace(functions=[]), toolbox=None, probes=0)
        single = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=1)
        position, saved = at
        stream = TrainStream(
            data.open_train(config),
            lambda row: row | {"length": 1, "prompt_ids": [row["number"] + 1]},
            single,
            position=place_of(position, saved)["position"],
        )
        rollouts = rollouts_of(session, run, stream, [saved] if saved else [])
        buffer = Buffer(run, run.rollouts, rollouts, position, saved)
        buffer.engine, buffer.post = method.engine, rollouts.post
        method.engine.post = rollouts.post
        return buffer

    return made


def learnt(buffer, steps=None) -> list[list[dict[str, Any]]]:
    """The rows of each step; the trainer's step goes on with each."""
    found = []
    for step in buffer:
        found.append([row for unit in step.units for row in unit])
        buffer.run.step += 1
        if steps is not None and len(found) == steps:
            break
    return found


def numbers(steps) -> list[list[int]]:
    return [sorted({row["number"] for row in rows}) for rows in steps]


def oldest(rows, step) -> int:
    return max(step - version for row in rows for version in row["versions"])


def test_every_prompt_is_learnt_from_once_and_whole(make):
    buffer = make(length=lambda n: 20 if n % 5 == 0 else 3)
    steps = learnt(buffer)
    assert sorted(n for step in numbers(steps) for n in step) == list(range(12))
    for row in (row for rows in steps for row in rows):
        first = row["number"] + 1
        assert row["completion_ids"] == [1000 * first + at for at in range(20 if row["number"] % 5 == 0 else 3)]
    assert all(count == (20 if (first - 1) % 5 == 0 else 3) for (first, _), count in buffer.engine.sampled.items())


@pytest.mark.parametrize("bound", [1, 2, 4])
def test_no_token_is_older_than_the_bound_and_long_ones_use_it(make, bound):
    buffer = make(length=lambda n: 40 if n % 4 == 0 else 2, max_staleness=bound, rows=24)
    ages = [oldest(rows, step) for step, rows in enumerate(learnt(buffer))]
    assert max(ages) == bound


def test_a_long_completion_lives_through_updates_and_its_tokens_know_their_weights(make):
    buffer = make(length=lambda n: 12 if n == 0 else 2, max_staleness=3)
    rows = [row for rows in learnt(buffer) for row in rows if row["number"] == 0]
    assert all(row["versions"] == sorted(row["versions"]) and len(set(row["versions"])) > 1 for row in rows)
    assert all(len(row["versions"]) == len(row["completion_ids"]) for row in rows)


@pytest.mark.parametrize("recompute", [True, False])
def test_rows_under_way_keep_their_keys_and_values_where_asked(make, monkeypatch, recompute):
    stops = []
    interrupt = Counting.interrupt
    monkeypatch.setattr(Counting, "interrupt", lambda self: (stops.append(self.version), interrupt(self)))
    buffer = make(length=lambda n: 20 if n % 5 == 0 else 3, max_staleness=3, recompute_cache=recompute)
    steps = learnt(buffer)
    assert bool(stops) is recompute
    assert sorted(n for step in numbers(steps) for n in step) == list(range(12))
    assert any(len(set(row["versions"])) > 1 for rows in steps for row in rows)


def test_in_order_takes_prompts_in_the_order_of_the_data(make):
    buffer = make(length=lambda n: 20 if n % 4 == 0 else 2, rollout_order="in_order")
    assert numbers(learnt(buffer)) == [[n, n + 1] for n in range(0, 12, 2)]


def test_ready_first_leaves_a_long_one_for_the_next_rollout(make):
    buffer = make(length=lambda n: 20 if n == 0 else 2)
    first, second = numbers(learnt(buffer, steps=2))
    assert 0 not in first and 0 in second


def test_never_more_prompts_than_the_bound_allows(make):
    buffer = make(length=lambda n: 30 if n % 3 == 0 else 2, max_staleness=2, rows=24)
    most, ledger = 0, buffer.post.ledger
    add = ledger.add

    def adding(unit):
        nonlocal most
        add(unit)
        most = max(most, len(ledger.units) + ledger.taken)

    ledger.add = adding
    learnt(buffer)
    assert most == 3 * 2


def test_groups_without_a_signal_are_replaced_within_the_bound(make):
    buffer = make(signal=lambda n: n % 3 != 0)
    steps = learnt(buffer)
    assert sorted(n for step in numbers(steps) for n in step) == [n for n in range(12) if n % 3]
    assert [len(step) for step in numbers(steps)] == [2, 2, 2, 2]


def test_an_error_where_no_group_ever_has_a_signal(make):
    buffer = make(signal=lambda n: False, rows=40, max_rollout_draws=2)
    with pytest.raises(FtHostError, match="none of .* prompts had a signal"):
        learnt(buffer)


def test_metrics_of_left_out_groups_are_in_the_rollout_that_they_came_before(make):
    buffer = make(signal=lambda n: n != 0, length=lambda n: 1 if n == 0 else 3)
    first = next(buffer)
    assert first.metrics["kept"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("stopped", [1, 2, 4])
@pytest.mark.parametrize("bound", [1, 2])
def test_a_run_that_goes_on_learns_from_each_prompt_once_and_samples_no_token_twice(make, stopped, bound):
    length = lambda n: 25 if n % 4 == 0 else 2  # noqa: E731
    whole = make(length=length, max_staleness=bound)
    first = learnt(whole, steps=stopped)
    state = json.loads(json.dumps(whole.state()))
    position = {"rollout": whole.number, "step": whole.step, "place": whole.place}
    begun = sum(whole.engine.sampled.values())
    whole.close()
    again = make(length=length, max_staleness=bound, at=(position, state))
    again.run.step = stopped
    second = learnt(again)
    assert sorted(n for step in numbers(first + second) for n in step) == list(range(12))
    assert begun + sum(again.engine.sampled.values()) == sum(2 * length(n) for n in range(12))
    for step, rows in enumerate(first + second):
        assert oldest(rows, step) <= bound


def test_a_rollout_of_several_steps_is_bounded_at_its_first(make):
    buffer = make(length=lambda n: 30 if n % 4 == 0 else 2, steps=2, max_staleness=2, rows=24)
    steps = learnt(buffer)
    assert sorted(row["number"] for rows in steps for row in rows) == sorted([*range(24), *range(24)])
    assert max(oldest(rows, step // 2 * 2) for step, rows in enumerate(steps)) == 2


def test_the_engine_is_closed_and_threads_end(make):
    buffer = make(length=lambda n: 1000 if n == 5 else 2, max_staleness=4)
    learnt(buffer, steps=1)
    threads = list(buffer.post.source.producer.threads.values())
    buffer.close()
    for thread in threads:
        thread.join(5)
    assert buffer.engine.closed and not any(thread.is_alive() for thread in threads)


def test_a_wait_without_progress_ends_with_what_was_waited_for(make):
    buffer = make(rollout_timeout=0.3)
    buffer.engine.poll = lambda patience: []
    with pytest.raises(
        FtHostError, match=r"any further for 0.3 seconds \(rollout_timeout\).* prompt 0 is being completed"
    ):
        learnt(buffer)


@pytest.mark.parametrize("method", ["submit", "poll", "update"])
def test_an_engine_that_raises_is_named_with_its_line(make, method):
    buffer = make(length=lambda n: 2)
    learnt(buffer, steps=1)

    def broken(*arguments):
        return {}["weights"]

    setattr(buffer.engine, method, broken)
    with pytest.raises(HookError, match=r"ft_engine .* failed: KeyError: 'weights' \(.*test_ahead.py, line \d+\)"):
        learnt(buffer)


def test_the_comparison_of_log_probs_does_not_wait_for_ever(make):
    buffer = make(rollout_timeout=0.2)
    buffer.engine.poll = lambda patience: []
    buffer.rollouts.weights.open()
    with pytest.raises(FtHostError, match=r"sampled nothing for 0.2 seconds \(rollout_timeout\): 1 of 1 completions"):
        buffer.post.generate([Request(prompt_ids=[1], number=0)], Sampling(max_new_tokens=4))
    buffer.close()


def test_prompts_under_way_are_not_lost_by_going_on_without_staleness(make):
    buffer = make(length=lambda n: 20 if n == 0 else 2)
    learnt(buffer, steps=1)
    state = json.loads(json.dumps(buffer.state()))
    with pytest.raises(ConfigError, match="prompts under way, which would be lost"):
        make(rollouts="sync", at=({"rollout": 0, "step": 1, "place": buffer.place}, state))


@pytest.mark.parametrize(
    ("ranks", "shared", "expected"),
    [
        (2, False, [[0, 3], [1, 2]]),  # as they were
        (3, False, [[0, 3], [1], [2]]),
        (1, False, [[0, 1, 2, 3]]),
        (2, True, [[0, 1, 2, 3], []]),
    ],
)
def test_what_is_under_way_goes_on_with_another_number_of_ranks(ranks, shared, expected):
    states = [
        {"quota": 1, "units": [{"number": 0}, {"number": 3}], "left_out": []},
        {"quota": 1, "units": [{"number": 1}, {"number": 2}], "left_out": []},
    ]
    found = [kept_units(states, rank, ranks, shared)["units"] for rank in range(ranks)]
    assert [[unit["number"] for unit in units] for units in found] == expected


def test_engine_and_policy_are_compared_in_the_second_rollout_and_then_seldom(make, monkeypatch):
    buffer = make(rows=24, max_staleness=1)
    found = {"rollouts/mismatch_mean": mean(0.25, 1)}
    monkeypatch.setattr("ft_host.scheduling.ahead.mismatch_metrics", lambda rows, run, generate: found)
    logged = []
    for step in buffer:
        logged.append(step.metrics.get("rollouts/mismatch_mean"))
        buffer.run.step += 1
    assert logged[:3] == [None, 0.25, None] and set(logged[2:]) == {None} and len(logged) > 4


def test_the_bottleneck_is_said_and_becomes_facts(make, monkeypatch):
    monkeypatch.setattr("ft_host.scheduling.bottleneck.SECONDS", 0.0)
    buffer = make(rows=24, max_staleness=1)
    said, facts = [], {}
    monkeypatch.setattr(buffer.run, "say", lambda text, level="info": said.append(text))
    monkeypatch.setattr(buffer.run, "record_facts", facts.update)
    learnt(buffer)
    assert [text for text in said if "a step takes" in text] and facts["watch/bottleneck_step"] > 0
