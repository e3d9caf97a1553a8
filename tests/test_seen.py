"""What an asynchronous run shows of itself: staleness, effective sample size, and the timeline."""

from __future__ import annotations

import json
import math
import re
import threading
import types
from dataclasses import replace

import pluggy
import pytest
import torch

from ft_host.metrics import Accumulator, combine
from ft_host.report import read_run
from ft_host.report.timeline import Span, binned, spans_of
from ft_host.rundir.folder import RunFolder
from ft_host.scheduling import measure, timeline
from ft_host.scheduling.bottleneck import Bottleneck, Load
from ft_host.scheduling.measure import (
    Times,
    effective,
    ledger_metrics,
    sample_metrics,
    some_of,
    staleness_metrics,
    turn_of,
)
from ft_host.scheduling.producer import Producer
from ft_host.scheduling.timeline import Timeline, coarser
from ft_host.scheduling.unit import READY, RUNNING, Begun, Made, Measured, Restarted, Unit, Updated
from ft_host.scheduling.waiting import Post
from ft_host.testing.runs import make_run


def numbers(*ranks) -> dict[str, float]:
    """The metrics of ranks as they are logged."""
    parts = []
    for metrics in ranks:
        accumulator = Accumulator()
        accumulator.add(metrics)
        parts.append(accumulator.local())
    return combine(parts)


def unit(number: int, *versions: list[int], state: str = READY, keys: tuple[str, ...] = (), rows: int | None = None):
    begun = {
        (keys[index] if keys else f"policy {index} {number}"): Begun(token_ids=each, versions=each)
        for index, each in enumerate(versions)
    }
    made = Made(
        rows=[{}] * (len(versions) if rows is None else rows), samples=[], metrics={}, seconds={}, tokens=0, calls=1
    )
    return Unit(number=number, rollout=0, step=0, rows=[], epoch=0.0, state=state, begun=begun, made=made)


# ---------------------------------------------------------------- staleness


def test_staleness_is_of_tokens_and_a_group_is_late_by_its_oldest():
    # After 7 updates: ages 2, 2, 1 / 1 | 0, 0 / 0. The first group was begun under weights 5, the second under 7.
    taken = [unit(0, [5, 5, 6], [6]), unit(1, [7, 7], [7])]
    assert numbers(staleness_metrics(taken, 7)) == {
        "rollouts/staleness_mean": 6 / 7,
        "rollouts/staleness_max": 2,
        "rollouts/late_share": 0.5,
        "rollouts/late_length": 2,
        "rollouts/on_time_length": 1.5,
    }


def test_groups_of_the_same_age_are_on_time_however_old():
    found = numbers(staleness_metrics([unit(0, [3], [3, 3]), unit(1, [3, 4], [4])], 4))
    assert found["rollouts/late_share"] == 0 and "rollouts/late_length" not in found
    assert found["rollouts/staleness_mean"] == 4 / 6


def test_a_teachers_tokens_and_units_without_tokens_have_no_age():
    taught = unit(0, [1, 1], [6, 6], keys=("teacher 3 0", "policy 3 1"))
    found = numbers(staleness_metrics([taught, unit(1)], 6))
    assert found["rollouts/staleness_max"] == 0 and found["rollouts/on_time_length"] == 2
    assert staleness_metrics([unit(1), unit(2, [1, 1], rows=0)], 6) == {}


def test_the_turns_of_a_conversation_are_one_completion():
    turns = unit(0, [2, 2], [2, 2, 2], [2], rows=1)
    assert numbers(staleness_metrics([turns], 2))["rollouts/on_time_length"] == 6


def test_ranks_are_one_mean():
    found = numbers(staleness_metrics([unit(0, [4, 4, 4])], 5), staleness_metrics([unit(1, [5])], 5), {})
    assert found["rollouts/staleness_mean"] == 3 / 4 and found["rollouts/staleness_max"] == 1


# ---------------------------------------------------------------- effective sample size


@pytest.mark.parametrize(
    ("weights", "share"), [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([2, 1, 1], 16 / 18), ([1e-9, 1e-9], 1.0)]
)
def test_the_effective_share_by_hand(weights, share):
    logs = torch.tensor(weights, dtype=torch.float64).log()
    assert numbers({"ess": effective(logs, float(logs.max()))})["ess"] == pytest.approx(share)


def test_weights_beyond_a_float_are_compared_all_the_same():
    logs = torch.tensor([2000.0, 2000.0 + math.log(3)], dtype=torch.float64)
    assert numbers({"ess": effective(logs, float(logs.max()))})["ess"] == pytest.approx(16 / 20)


def test_the_rows_looked_at_are_spread_and_few():
    rows = [{"at": index} for index in range(640)]
    assert [row["at"] for row in some_of(rows, 1)] == list(range(0, 640, 16))
    assert [row["at"] for row in some_of(rows[:32], 1)] == list(range(0, 32, 2))
    assert len(some_of(rows[:5], 1)) == 5 and some_of([], 2) == []
    assert len(some_of(rows[:100], 4)) == 7  # a sixteenth is more than a fourth of 16


def test_of_small_rollouts_not_each_is_looked_at():
    """A sixteenth of all rows at most, on average, but each eighth rollout at the least."""
    turns = {rows: [turn_of(number, rows) for number in range(16)].count(True) for rows in (16, 64, 128, 256, 4096)}
    assert turns == {16: 2, 64: 4, 128: 8, 256: 16, 4096: 16}


class Policy(torch.nn.Module):
    """Gives each target the log-prob -0.5."""

    def forward(self, batch, want, temperature):
        return {"logp": torch.full((len(batch.targets),), -0.5)}


def run_of(**more):
    run = types.SimpleNamespace(
        policy=Policy(),
        device="cpu",
        step=3,
        world_size=1,
        gather=lambda value: [value],
        accelerator=types.SimpleNamespace(autocast=torch.no_grad),
        config=types.SimpleNamespace(
            temperature=1.0,
            per_device_eval_batch_size=2,
            max_tokens_per_micro_batch=None,
            seed=0,
            max_completion_length=4,
        ),
    )
    vars(run).update(more)
    return run


def row(*logps: float, **more) -> dict:
    ids = list(range(5, 5 + len(logps)))
    length = 2 + len(ids)
    return {"group": 0, "prompt_ids": [1, 2], "completion_ids": ids, "sampled": [True] * len(ids), "length": length} | {
        "sampling_logps": list(logps),
        **more,
    }


def test_the_policy_beside_the_sampler(monkeypatch):
    monkeypatch.setattr("ft_host.models.aux_models.reshard", lambda policy: None)
    half = -0.5 - math.log(2)  # the policy gives twice the sampler's probability
    rows = [row(half, -0.5), row(-0.5), row(-0.5, -0.5)]
    left_out = [row(-3.0, on_policy=False), row(-0.5) | {"sampled": [False], "sampling_logps": []}, {"length": 4}]
    found = numbers(sample_metrics([*left_out, *rows], run_of()))
    # tokens weigh 2, 1, 1, 1, 1; rows 2, 1, 1
    assert found["rollouts/ess"] == pytest.approx(36 / (5 * 8))
    assert found["rollouts/ess_rows"] == pytest.approx(16 / (3 * 6))
    assert found["rollouts/logp_difference"] == pytest.approx(math.log(2) / 5)
    assert sample_metrics(left_out, run_of()) == {}


def test_mismatch_is_of_completions_with_the_same_weights(monkeypatch):
    from ft_host.types import Completion

    monkeypatch.setattr("ft_host.models.aux_models.reshard", lambda policy: None)

    def generate(requests, sampling):
        said = [Completion(token_ids=[7, 8], logprobs=[-0.5, -0.7], finish_reason="stop", versions=[3, 3])]
        return said + [Completion(token_ids=[7], logprobs=[-9.0], finish_reason="stop", versions=[2])] * (
            len(requests) - 1
        )

    prompts = [{"group": group, "prompt_ids": [1, 2]} for group in range(3)]
    found = numbers(measure.mismatch_metrics(prompts, run_of(), generate))
    assert found == {"rollouts/mismatch_mean": pytest.approx(0.1), "rollouts/mismatch_max": pytest.approx(0.2)}
    assert measure.mismatch_metrics(prompts, run_of(step=4), generate) == {}


# ---------------------------------------------------------------- units and time


def test_units_are_counted_by_state():
    units = [unit(0), unit(1), unit(2, state=RUNNING)]
    found = numbers(ledger_metrics(units, {"engine": 2}, 1), ledger_metrics([unit(3)], {}, 0))
    assert found == {
        "rollouts/ready": 3,
        "rollouts/running": 1,
        "rollouts/waiting": 0,
        "rollouts/set_aside": 1,
        "rollouts/failed_engine": 2,
    }


def measured(at: float, at_once: int = 0, tokens: int = 0, **seconds: float) -> Measured:
    return Measured(at=at, seconds=seconds, tokens=tokens, running=0, queued=0, scoring=at_once)


def test_the_speed_of_each_server_is_that_of_its_requests():
    times = Times()
    for servers in ({0: (100, 2.0), 1: (30, 3.0)}, {0: (100, 2.0)}):
        times.add(replace(measured(1.0), servers=servers))
    found = numbers(times.take([]))
    assert found == {"rollouts/server_0/tokens_per_second": 50, "rollouts/server_1/tokens_per_second": 10}
    assert times.take([]) == {}


def test_times_since_the_rollout_before():
    times = Times()
    times.add(measured(10, tokens=600, generating=3.0, idle=1.0))
    times.add(measured(12, 3, tokens=400, generating=1.5, scoring=0.5, updating=2.0))
    times.add(Updated(version=1, seconds=0.4))
    times.add(Updated(version=2, seconds=0.2))
    taken = [unit(0), unit(1)]
    for each in taken:
        each.made.seconds["reward"] = 2.4
    found = numbers(times.take(taken))
    assert found["perf/rollout_idle_share"] == 1.5 / 8 and found["perf/rollout_scoring_share"] == 0.5 / 8
    assert found["perf/engine_time"] == 6.5
    assert found["perf/scoring_time"] == pytest.approx(4.8 / 3)  # three at once
    assert found["perf/generation_tokens_per_second"] == pytest.approx(1000 / 4.5)
    assert found["perf/weight_update_time"] == pytest.approx(0.3)
    assert times.take([]) == {}
    assert numbers(times.take(taken)) == {"perf/scoring_time": pytest.approx(4.8 / 3)}  # between two measurements


# ---------------------------------------------------------------- timeline


def lines_of(folder) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "timeline.jsonl").read_text().splitlines()]
    return [(line["side"], line["what"], line["start"], line["end"]) for line in lines if line["side"] != "queue"]


def test_what_the_trainer_does_not_name_is_training(tmp_path):
    line = Timeline(RunFolder(tmp_path), 0, at=90.0)
    line.ended("weight_sync", 0.5, at=94.5)
    line.ended("rollout_wait", 6.0, at=100.0)
    line.ended("rollout_wait", 2.0, at=103.0)  # training 100 to 101
    line.ended("annotation", 0.0004, at=103.0)
    line.ended("annotation", 1.0, at=104.0)
    line.ended("generation", 9.0, at=104.5)  # the rollouts' time, not the trainer's
    line.stepped(1, at=106.0)
    line.stepped(2, at=108.0)  # one span with the step before
    line.ended("save", 1.0, at=109.0)
    line.flush()
    assert lines_of(tmp_path) == [
        ("trainer", "starting", 90.0, 94.0),
        ("trainer", "publishing", 94.0, 94.5),
        ("trainer", "waiting", 94.5, 100.0),
        ("trainer", "training", 100.0, 101.0),
        ("trainer", "waiting", 101.0, 103.0),
        ("trainer", "annotating", 103.0, 104.0),
        ("trainer", "training", 104.0, 108.0),
        ("trainer", "saving", 108.0, 109.0),
    ]


def test_what_the_rollouts_do_follows_in_order(tmp_path):
    line = Timeline(RunFolder(tmp_path), 0, at=0.0)
    line.seen(measured(10, generating=3.0, idle=1.0))
    line.seen(measured(12, 4, scoring=2.0))
    line.seen(measured(15, generating=3.0))
    line.seen(measured(18, generating=2.9, idle=0.1))
    line.flush()
    assert lines_of(tmp_path) == [
        ("rollouts", "generating", 6.0, 9.0),
        ("rollouts", "idle", 9.0, 10.0),
        ("rollouts", "scoring", 10.0, 12.0),
        ("rollouts", "generating", 12.0, 17.9),
        ("rollouts", "idle", 17.9, 18.0),
    ]


def test_a_run_that_goes_on_cuts_the_steps_it_makes_again(tmp_path):
    line = Timeline(RunFolder(tmp_path), 0, at=0.0)
    for step in range(1, 6):
        line.ended("rollout_wait", 1.0, at=10.0 * step)
        line.stepped(step, at=10.0 * step + 5)
    line.flush()
    RunFolder(tmp_path).rewind(3)
    assert lines_of(tmp_path)[-1] == ("trainer", "training", 30.0, 39.0)


def test_a_long_run_keeps_a_small_file_and_its_last_minutes(tmp_path, monkeypatch):
    for name, value in (("LONGEST", 200), ("KEPT", 50), ("STRETCHES", 10)):
        monkeypatch.setattr(timeline, name, value)
    line = Timeline(RunFolder(tmp_path), 0, at=0.0)
    for step in range(1, 2001):
        line.ended("rollout_wait", 0.25, at=step - 0.5)
        line.depth(step % 2, 1, 0, at=float(step))
        line.stepped(step, at=float(step))
    line.flush()
    found = lines_of(tmp_path)
    assert len((tmp_path / "timeline.jsonl").read_text().splitlines()) <= 200
    assert found[-3:] == [
        ("trainer", "training", 1998.5, 1999.25),
        ("trainer", "waiting", 1999.25, 1999.5),
        ("trainer", "training", 1999.5, 2000.0),
    ]
    for what, seconds in (("waiting", 500.0), ("training", 1500.0)):
        assert sum(end - start for _, each, start, end in found if each == what) == pytest.approx(seconds, abs=0.5)
    assert all(before[3] <= after[2] + 1e-9 for before, after in zip(found, found[1:], strict=False))


def test_no_stretch_goes_over_a_pause():
    spans = [{"side": "trainer", "what": "training", "start": at, "end": at + 1, "step": 1} for at in (0, 1, 900, 901)]
    assert [(line["start"], line["end"]) for line in coarser(spans, 1)] == [(0, 2), (900, 902)]
    assert coarser([], 5) == []


# ---------------------------------------------------------------- the bottleneck


def load(generate: float, score: float, train: float, step: float | None = None, together: bool = False) -> Load:
    made = Load(step=0.0, generate=generate, score=score, train=train, together=together)
    return replace(made, step=made.bound if step is None else step)


@pytest.mark.parametrize(
    ("measured", "slowest", "bound", "servers", "workers"),
    [
        (load(3.0, 0.5, 2.0), "generation", 3.0, 2.0, 3.0),  # twice the servers: 1.5, and training takes 2
        (load(1.0, 0.5, 2.0), "training", 2.0, 2.0, 2.0),
        (load(1.0, 4.0, 2.0), "rewards", 4.0, 4.0, 2.0),
        (load(2.0, 0.5, 2.1, step=4.0), "waiting", 2.1, 2.1, 2.1),
        (load(3.0, 0.5, 2.0, together=True), "generation", 5.0, 2.0, 5.0),  # apart, and with half of 3: max(1.5, 2)
        (load(1.0, 0.5, 2.0, together=True), "training", 3.0, 2.0, 3.0),
        (load(1.0, 8.0, 2.0, together=True), "rewards", 8.0, 8.0, 4.0),
    ],
)
def test_the_slowest_part_and_what_would_help(measured, slowest, bound, servers, workers):
    facts = measured.facts()
    assert facts["watch/bottleneck"] == slowest and facts["watch/bottleneck_larger_bound"] == bound
    assert facts["watch/bottleneck_more_servers"] == servers and facts["watch/bottleneck_more_workers"] == workers


def test_what_is_said_has_the_numbers():
    assert load(3.0, 0.5, 2.0, step=3.1).said() == (
        "The bottleneck is generation: a step takes 3.1 s, and needs generation 3 s, rewards 0.5 s, training 2 s; "
        "at best, with generation twice as fast (twice the servers) about 2 s"
    )
    assert load(1.0, 0.5, 2.0).said().endswith("nothing on the side of the rollouts makes it shorter")
    assert load(1.0, 0.5, 2.0, step=3.0).said() == (
        "A step takes far longer than its parts need, which wait for each other: a step takes 3 s, and needs "
        "generation 1 s, rewards 0.5 s, training 2 s; at best, with a larger max_staleness about 2 s"
    )
    assert "rollouts: async, with a device for each side about 2 s" in load(1.0, 0.5, 2.0, together=True).said()


def test_it_is_said_after_five_rollouts_and_a_minute_and_then_more_seldom():
    found = Bottleneck(updates=2, together=False)
    told = {}
    for number in range(40):
        now = 20.0 * number
        measured = found.add(generate=16.0, score=4.0, wait=12.0, at=now)
        if measured is not None:
            told[number] = measured
    assert list(told) == [5, 25]  # the first only starts the clock; then four times as many
    assert told[5] == Load(step=10.0, generate=8.0, score=2.0, train=4.0, together=False)
    assert found.news(told[5]) and not found.news(told[25]) and found.news(load(1.0, 0.0, 2.0))


def test_quick_rollouts_are_looked_at_for_a_minute():
    found = Bottleneck(updates=1, together=True)
    said = [number for number in range(200) if found.add(generate=0.1, score=0.0, wait=0.1, at=0.5 * number)]
    assert said == [120]


# ---------------------------------------------------------------- the report


def logged(folder, steps: int, at: float = 0.0, first: int = 1) -> float:
    """Write the timeline of steps of 2 s, a quarter of which the trainer waits; returns when they end."""
    line = Timeline(RunFolder(folder), first - 1, at=at)
    for step in range(first, first + steps):
        at += 2.0
        line.ended("rollout_wait", 0.5, at=at - 1.5)
        line.seen(measured(at, generating=1.6, idle=0.4))
        line.depth(step % 3, 4, 0, at=at)
        line.stepped(step, at=at)
    line.flush()
    return at


def shown(tmp_path) -> tuple[str, list[str]]:
    from ft_host.report import write_report

    html = write_report(tmp_path / "run").read_text(encoding="utf-8")
    start = html.find("Where the time goes")
    return html, re.findall(
        r"<figure.*?</figure>", html[start : html.find("<h2>", start)], re.DOTALL
    ) if start > 0 else []


def test_the_report_says_where_the_time_goes(tmp_path):
    run = make_run(tmp_path / "run", steps=20, eval_steps=None, rollouts=True)
    logged(run, 20)
    add = {"rollouts/staleness_mean": 0.8, "rollouts/staleness_max": 1, "rollouts/ess": 0.9, "rollouts/ready": 2}
    lines = [json.loads(line) | add for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html, figures = shown(tmp_path)
    assert "training 75 %" in html and "waiting 25 %" in html and "generating 80 %" in html and "idle 20 %" in html
    assert "<b>The run</b>" in figures[0] and 'class="span c7 calm"' in figures[0]
    for heading in ("Staleness", "Effective sample size", "Groups on their way"):
        assert sum(f"<b>{heading}</b>" in figure for figure in figures) == 1
    assert html.count("rollouts/ess") == figures[-1].count("rollouts/ess")  # once, in the panel


def test_thousands_of_spans_are_a_picture_of_a_few_shapes(tmp_path):
    run = make_run(tmp_path / "run", steps=20, eval_steps=None, rollouts=True)
    logged(run, 4000)
    html, figures = shown(tmp_path)
    assert "<b>The whole run</b>" in figures[0] and "<b>The last 4 min" in figures[1]
    assert all(figure.count("<path") <= 12 and len(figure) < 60_000 for figure in figures)


def test_a_pause_of_the_run_takes_no_room(tmp_path):
    run = make_run(tmp_path / "run", steps=20, eval_steps=None, rollouts=True)
    end = logged(run, 5, at=1e9)
    logged(run, 5, at=end + 86_400, first=6)
    spans, depths = spans_of(read_run(run).timeline)
    assert spans[0].start == 0 and max(span.end for span in spans) == pytest.approx(20, abs=0.1)
    assert max(at for at, _ in depths) <= 20.1


def test_a_run_without_a_timeline_has_no_such_panel(tmp_path):
    make_run(tmp_path / "run", steps=20, eval_steps=None, rollouts=True)
    html, figures = shown(tmp_path)
    assert "Where the time goes" not in html and not figures


@pytest.mark.parametrize(
    "line",
    [
        {"step": 1, "side": ["a"], "what": {}, "start": "nan", "end": 4},
        {"step": 1, "side": "trainer", "what": "unheard", "start": 0, "end": 4},
        {"step": 1, "side": "trainer", "what": "training", "start": 5, "end": 4},
        {"step": 1, "side": "queue", "start": 5, "end": 5, "ready": "many"},
        {"step": 1, "side": "trainer", "what": "training", "start": 1e400, "end": 4},
    ],
)
def test_lines_of_another_form_are_left_out(tmp_path, line):
    run = make_run(tmp_path / "run", steps=20, eval_steps=None, rollouts=True)
    (run / "timeline.jsonl").write_text(json.dumps(line) + "\n")
    html, figures = shown(tmp_path)
    assert "Where the time goes" not in html and not figures


def test_a_bin_is_filled_by_shares():
    spans = [Span("trainer", "training", 0.0, 3.0), Span("trainer", "waiting", 3.0, 4.0)]
    assert binned(spans, 0.0, 4.0, 2) == [{"training": 1.0}, {"training": 0.5, "waiting": 0.5}]


# ---------------------------------------------------------------- what a source tells


def test_a_restart_is_told_and_is_a_fact():
    told = []
    run = types.SimpleNamespace(say=lambda *said: told.append(said), record_facts=told.append, timeline=None)
    post = Post(run=run, ledger=None, failures=None, limit=60.0)
    post.take([Restarted(times=2, why="was ended by signal 9", text="the rollout process was ended by signal 9")])
    assert told == [
        ("the rollout process was ended by signal 9", "warning"),
        {"watch/rollout_restarts": 2, "watch/rollout_restart_cause": "was ended by signal 9"},
    ]


def test_an_engine_without_a_request_scores_while_rewards_are_awaited_and_is_idle_otherwise():
    told: list[Measured] = []
    inbox = types.SimpleNamespace(
        worked=True, lock=threading.RLock(), running={1: types.SimpleNamespace(unit=7)}, arrived=(), tokens=12
    )
    vars(inbox).update(servers={}, queued=0, step=lambda patience: inbox.worked)
    producer = Producer(plugins=pluggy.PluginManager("t"), inbox=inbox, rollout_run=None, emit=told.append)
    done = threading.Event()
    producer.threads = {unit: threading.Thread(target=done.wait, daemon=True) for unit in (7, 8)}
    for thread in producer.threads.values():
        thread.start()
    producer.step(0)
    inbox.worked, inbox.running = False, {}
    producer.step(0)
    done.set()
    for thread in list(producer.threads.values()):
        thread.join()
    producer.step(0)
    producer.measure()
    assert list(told[-1].seconds) == ["generating", "scoring", "idle"]
    assert told[-1].scoring == 2 and told[-1].tokens == 12 and inbox.tokens == 0
