"""Ranks are compared by what each does by itself: one that is slow is told from one that has more to do."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from ft_host.diagnostics.replay import diagnose
from ft_host.diagnostics.rules.ranks import RULES
from ft_host.monitor import ranks as monitor
from ft_host.monitor.ranks import LEAST, STEPS, WARMING, Own, RankTimes
from ft_host.run import Run
from ft_host.rundir.folder import RunFolder
from ft_host.testing import processes
from ft_host.testing.rules import Told, codes, findings, steps


@pytest.fixture
def sleep(monkeypatch):
    """Lets time pass by so many seconds, at once: no other clock runs."""
    passed = [0.0]
    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: passed[0]))

    def pass_by(seconds: float) -> None:
        passed[0] += seconds

    return pass_by


def run_of(**what) -> SimpleNamespace:
    made = {"device": torch.device("cpu"), "waited": 0.0, "timeline": None, "is_sharded": False, "model": None}
    return SimpleNamespace(**made | what)


def compared(ranks: list[Own], count: int = STEPS) -> dict[str, float]:
    times, found = RankTimes(run_of()), {}
    for _ in range(WARMING + count):
        found = times.compared(ranks)
    return found


def series(**values: float) -> dict[str, float]:
    """The metrics of rank 1, which is the slowest, beside others of 0.1 s and 400 tokens."""
    usual = {
        "perf__slowest_rank": 1.0,
        "perf__slowest_rank_time": 0.1,
        "perf__other_ranks_time": 0.1,
        "perf__slowest_rank_tokens": 400.0,
        "perf__other_ranks_tokens": 400.0,
        "perf__slowest_rank_rows_time": 0.02,
        "perf__other_ranks_rows_time": 0.02,
        "perf__slowest_rank_training_time": 0.08,
        "perf__other_ranks_training_time": 0.08,
    }
    return usual | values


def test_time_in_exchanges_is_not_a_rank_s_own(sleep):
    run = run_of()
    times = RankTimes(run)
    times.begin()
    with times.getting_rows():
        sleep(0.05)
        run.waited += 0.04  # as `Run.gather` counts it
    times.end()
    found = times.own(1)
    assert found.rows == pytest.approx(0.01) and found.training == pytest.approx(0.01)


def test_the_broadcast_of_buffers_before_a_forward_is_not_either(sleep):
    class Wrapper(DistributedDataParallel):
        def __init__(self, module):
            torch.nn.Module.__init__(self)
            self.module = module

        def forward(self, inputs):
            sleep(0.08)  # where DDP broadcasts
            return self.module(inputs)

    class Inner(torch.nn.Module):
        def forward(self, inputs):
            sleep(0.02)
            return inputs

    run = run_of(model=Wrapper(Inner()))
    times = RankTimes(run)
    run.model(1)  # an evaluation before
    times.begin()
    run.model(1)
    times.end()
    assert times.own(1).training == pytest.approx(0.02)


def test_a_run_counts_how_long_it_waits_for_others(monkeypatch):
    import torch.distributed as dist

    def waits(values, value):
        time.sleep(0.03)
        values[:] = [value, value]

    monkeypatch.setattr(dist, "all_gather_object", waits)
    run = Run.__new__(Run)
    run.accelerator, run.waited = SimpleNamespace(num_processes=2), 0.0
    assert run.gather(3) == [3, 3] and run.waited >= 0.03


def test_the_parts_of_a_step_are_rows_training_and_the_update_before(sleep):
    times = RankTimes(run_of())
    with times.getting_rows():
        sleep(0.03)
    times.begin()
    sleep(0.02)
    times.end()
    sleep(0.05)  # the last backward pass, in which it may wait
    first = times.own(7)
    with times.updating():
        sleep(0.04)
    times.begin()
    times.end()
    second = times.own(7)
    assert (first.rows, first.training, first.tokens) == (pytest.approx(0.03), pytest.approx(0.02), 7)
    assert (second.rows, second.training) == (0.0, pytest.approx(0.04))


def test_what_cannot_be_told_apart_does_not_count(sleep):
    sharded = RankTimes(run_of(is_sharded=True))
    sharded.begin()
    sleep(0.01)
    sharded.end()
    assert sharded.own(1).training == 0.0, "the layers of FSDP2 wait for the slowest rank"
    ahead = RankTimes(run_of(timeline=object()))
    with ahead.getting_rows():
        sleep(0.01)
    assert ahead.rows == 0.0, "a wait for completions is no work"


def test_the_slowest_rank_is_compared_with_the_median_of_the_others():
    found = compared([Own(0.01, 0.1, 400), Own(0.01, 0.1, 380), Own(0.01, 0.3, 410), Own(0.02, 0.12, 500)])
    assert found["perf/slowest_rank"] == 2
    assert found["perf/slowest_rank_time"] == pytest.approx(0.31) and found["perf/other_ranks_time"] == pytest.approx(
        0.11
    )
    assert found["perf/slowest_rank_training_time"] == 0.3 and found["perf/other_ranks_rows_time"] == 0.01
    assert found["perf/slowest_rank_tokens"] == 410 and found["perf/other_ranks_tokens"] == 400


def test_first_steps_and_single_processes_are_not_compared():
    assert compared([Own(0.1, 0.1, 1)]) == {}
    pair = [Own(0.1, 0.1, 1), Own(0.1, 0.4, 1)]
    assert compared(pair, LEAST - 1) == {} and compared(pair, LEAST)["perf/slowest_rank"] == 1


def test_a_single_slow_step_changes_no_median():
    times, usual = RankTimes(run_of()), [Own(0.0, 0.1, 5), Own(0.0, 0.1, 5)]
    for step in range(WARMING + STEPS):
        found = times.compared([usual[0], Own(0.0, 9.0, 5)] if step == 12 else usual)
    assert found["perf/slowest_rank_time"] == pytest.approx(0.1)


# ---------------------------------------------------------------- rules

SLOW = {"perf__slowest_rank_time": 0.22, "perf__slowest_rank_training_time": 0.2}


def found_in(**values) -> set[str]:
    return codes(RULES, Told(lines=steps(30, **series(**values))))


def test_a_rank_that_takes_twice_as_long_is_named_with_its_place_and_the_part():
    told = Told(facts={"plan/places": "a, cuda:0; b, cuda:1"}, lines=steps(30, **series(**SLOW)))
    [finding] = findings(RULES, told)
    assert finding.code == "SYS006" and finding.first_step <= 5
    assert "Rank 1 (b, cuda:1) takes 2.2 times as long" in finding.message
    assert "forward and backward passes and its update: 0.2 s beside 0.08 s" in finding.message
    assert "device of rank 1" in finding.remedies[0].why


def test_one_that_gets_its_rows_late_is_told_so():
    late = {"perf__slowest_rank_time": 0.3, "perf__slowest_rank_rows_time": 0.22}
    [finding] = findings(RULES, Told(lines=steps(30, **series(**late))))
    assert "mostly in getting its rows: 0.22 s beside 0.02 s" in finding.message
    assert "disk" in finding.remedies[0].why


def test_one_with_more_tokens_is_not_slow():
    more = SLOW | {"perf__slowest_rank_tokens": 800.0}
    told = Told(config={"train_sampling_strategy": "sequential"}, lines=steps(30, **series(**more)))
    [finding] = findings(RULES, told)
    assert finding.code == "SYS007" and "2 times as many tokens" in finding.message
    assert finding.remedies[0].patch == {"train_sampling_strategy": "random"}


def test_one_with_a_few_more_tokens_that_takes_three_times_as_long_is_slow():
    assert found_in(perf__slowest_rank_time=0.3, perf__slowest_rank_tokens=520.0) == {"SYS006"}


@pytest.mark.parametrize(
    "values",
    [
        {"perf__slowest_rank_time": 0.14},
        {"perf__slowest_rank_time": 0.004, "perf__other_ranks_time": 0.001},  # too little to matter
        SLOW | {"perf__slowest_rank": lambda step: float(step % 2)},  # now one, now the other: chance
        {"perf__slowest_rank_time": lambda step: 0.4 if step % 9 == 0 else 0.11},
    ],
    ids=["a little", "in milliseconds", "in turn", "now and then"],
)
def test_ranks_that_differ_as_they_do_are_not_told_of(values):
    assert found_in(**values) == set()


# ---------------------------------------------------------------- two processes

SLEEPS = """
import time
@hookimpl
def ft_loss(model, batch, run):
    if run.rank == 1 and model.training:
        time.sleep(0.3)
    return ft_sft.method.ft_loss(model=model, batch=batch, run=run)
"""


@pytest.mark.slow
def test_a_run_of_two_processes_names_the_one_that_sleeps(config, sft_with):
    slow = sft_with(SLEEPS)
    given = replace(config, max_steps=12, save_steps=0, eval_dataset=None, per_device_train_batch_size=4)
    processes.finish(processes.start(slow(**vars(given)), 2))
    folder = Path(given.output_dir)
    [finding] = [each for each in diagnose(folder).findings if each["code"] == "SYS006"]
    assert finding["message"].startswith("Rank 1 (") and "passes and its update" in finding["message"]
    *_, last = [line for line in RunFolder.open(folder).metrics() if line["kind"] == "train"]
    assert last["perf/slowest_rank"] == 1 and last["perf/slowest_rank_time"] >= 0.3
    assert 0.5 < last["perf/slowest_rank_tokens"] / last["perf/other_ranks_tokens"] < 2
    assert json.loads((folder / "run.json").read_text())["facts"]["plan/places"].count("cpu") == 2
