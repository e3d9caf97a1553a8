"""The rows of steps: their order, resuming, workers, ranks, laziness, and the judgement on dropped rows."""

import json
import math
import multiprocessing
import os
import time
from functools import partial

import pytest

from ft_host.config import RunConfig
from ft_host.data import TrainStream, check_first_rows, eval_rows, open_source, open_train
from ft_host.errors import ConfigError, DataError, FtHostError, RowError
from ft_host.types import Drop


def prepare(raw, log=None):
    """A row of as many tokens as it says. Dropped or refused where it says so."""
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{raw['number']}\n")
    if raw.get("drop"):
        return Drop(raw["drop"])
    if raw.get("bad"):
        raise RowError(raw["bad"], "number")
    if raw.get("bug"):
        raise ZeroDivisionError("a bug of the method")
    ids = [raw["number"]] * raw["size"]
    return {"input_ids": ids, "labels": ids, "length": len(ids), "truncated": raw["size"] > 40}


def write(path, count, change=None):
    rows = [{"number": number, "size": 1 + number * 7 % 40} for number in range(count)]
    for number, more in (change or {}).items():
        rows[number] |= more
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "a.jsonl", 53)


def config_of(data, **fields):
    given = {"model": "m", "dataset": data, "per_device_train_batch_size": 4, "num_train_epochs": 2, **fields}
    return RunConfig(**given)


def stream_of(config, **more):
    return TrainStream(open_train(config), prepare, config, **more)


def numbers(step):
    return [[row["input_ids"][0] for row in unit] for unit in step.units]


def run(config, limit=10_000, **more):
    stream = stream_of(config, **more)
    steps = []
    for step in stream:
        steps.append(step)
        if len(steps) == limit:
            break
    stream.close()
    return steps


KINDS = {
    "rows": {},
    "in order": {"train_sampling_strategy": "sequential"},
    "by length": {"train_sampling_strategy": "group_by_length", "data_window": 20},
    "packed": {"packing": True, "max_length": 50, "data_window": 20},
    "packed, one window": {"packing": True, "max_length": 50},
    "wrapped": {"packing": True, "max_length": 30, "packing_strategy": "wrapped", "data_window": 20},
    "split": {"packing": True, "max_length": 16, "packing_strategy": "bfd_split", "data_window": 20},
    "packed, in order": {"packing": True, "max_length": 50, "data_window": 7, "train_sampling_strategy": "sequential"},
    "streaming": {"dataset_streaming": True, "max_steps": 40, "data_window": 20},
    "streaming, packed": {
        "dataset_streaming": True,
        "max_steps": 40,
        "data_window": 20,
        "packing": True,
        "max_length": 50,
    },
    "streaming, in order": {"dataset_streaming": True, "max_steps": 40, "train_sampling_strategy": "sequential"},
}


@pytest.fixture(params=KINDS)
def config(request, data):
    return config_of(data, **KINDS[request.param])


@pytest.fixture(params=["mixture", "streamed mixture"])
def mixed(request, tmp_path):
    paths = [write(tmp_path / "m0.jsonl", 10), write(tmp_path / "m1.jsonl", 40)]
    items = [{"path": paths[0], "weight": 1}, {"path": paths[1], "weight": 2}]
    more = {"dataset_streaming": True, "max_steps": 40} if request.param == "streamed mixture" else {}
    return config_of(items, data_window=15, **more)


# ---------------------------------------------------------------- what is in the steps


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "stream" not in kind and kind not in ("wrapped", "split")])
def test_every_row_once_an_epoch(data, kind):
    steps = run(config_of(data, **KINDS[kind]))
    for epoch in range(2):
        mine = [numbers(step) for step in steps if math.ceil(step.epoch) == epoch + 1]
        seen = [number for units in mine for unit in units for number in unit]
        assert sorted(seen) == list(range(53))
    assert [step.last for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].rows_consumed == 106 and steps[-1].epoch == 2.0
    consumed = [step.rows_consumed for step in steps]
    assert consumed == sorted(consumed)
    first = [step for step in steps if step.epoch <= 1]
    assert all(len(step.units) == 4 for step in first[:-1]) and 1 <= len(first[-1].units) <= 4


@pytest.mark.parametrize("kind", ["wrapped", "split"])
def test_every_token_once_an_epoch(data, kind):
    steps = run(config_of(data, **KINDS[kind], num_train_epochs=1))
    tokens = sorted(token for step in steps for unit in step.units for row in unit for token in row["input_ids"])
    assert tokens == sorted(number for number in range(53) for _ in range(1 + number * 7 % 40))
    size = KINDS[kind]["max_length"]
    assert all(sum(row["length"] for row in unit) <= size for step in steps for unit in step.units)
    if kind == "wrapped":
        assert all(len(unit) == 1 for step in steps for unit in step.units)


def test_epochs_differ_and_seeds_differ_and_the_same_seed_is_the_same(data):
    one = [numbers(step) for step in run(config_of(data))]
    assert one == [numbers(step) for step in run(config_of(data))]
    assert one[:13] != one[14:27]
    assert one != [numbers(step) for step in run(config_of(data, seed=7))]


def test_in_order_is_in_order(data):
    steps = run(config_of(data, train_sampling_strategy="sequential", num_train_epochs=1))
    assert [number for step in steps for unit in numbers(step) for number in unit] == list(range(53))


def test_by_length_groups_similar_lengths_without_sorting_the_steps(data):
    steps = run(config_of(data, train_sampling_strategy="group_by_length", num_train_epochs=1))
    lengths = [[row["length"] for unit in step.units for row in unit] for step in steps]
    assert all(each == sorted(each, reverse=True) for each in lengths)
    assert max(max(each) - min(each) for each in lengths) <= 6, "of 1 to 40"
    firsts = [each[0] for each in lengths]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)


def test_packed_in_order_are_the_blocks_of_trl(data):
    from datasets import Dataset
    from trl import pack_dataset

    config = config_of(data, packing=True, max_length=50, train_sampling_strategy="sequential", num_train_epochs=1)
    rows = [prepare(open_source(data).read(index)) for index in range(53)]
    theirs = pack_dataset(Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows]), 50, "bfd")["input_ids"]
    ours = [[token for row in unit for token in row["input_ids"]] for step in run(config) for unit in step.units]
    assert ours == theirs


def test_rows_of_one_raw_row_are_units_of_their_own(data):
    config = config_of(data, num_train_epochs=1)
    stream = TrainStream(open_train(config), lambda raw: [prepare(raw), prepare(raw)], config)
    steps = list(stream)
    assert len(steps) == 14 and all(len(step.units) == 8 for step in steps[:13])


@pytest.mark.parametrize("epochs, rows", [(1, 53), (0.5, 28), (1.5, 53 + 28), (0.01, 4)])
def test_epochs_that_are_not_whole(data, epochs, rows):
    config = config_of(data, num_train_epochs=epochs)
    steps = run(config)
    assert steps[-1].rows_consumed == rows and steps[-1].last
    assert len(steps) == stream_of(config).planned_steps() == math.ceil(round(epochs * 14, 6))


def test_planned_steps(data):
    assert stream_of(config_of(data)).planned_steps() == 28
    config = config_of(data, packing=True, max_length=50, num_train_epochs=1)
    assert stream_of(config).planned_steps() == len(run(config)), "one window holds all of the data"
    config = config_of(data, packing=True, max_length=50, data_window=20)
    stream = stream_of(config)
    planned, steps = stream.planned_steps(), list(stream)
    assert abs(planned - len(steps)) <= 3, "estimated from the first window"
    assert [numbers(step) for step in steps] == [numbers(step) for step in run(config)], "the first window isn't lost"
    resumed = stream_of(config, position=json.loads(json.dumps(steps[7].position)))
    assert resumed.planned_steps() == planned, "a schedule must not change on resuming"
    streamed = config_of(data, dataset_streaming=True, max_steps=10)
    assert stream_of(streamed).planned_steps() is None


def test_max_steps_is_for_the_loop_to_stop_at(data):
    steps = run(config_of(data, max_steps=40), limit=40)
    assert len(steps) == 40 and not steps[-1].last and steps[-1].epoch > 2


# ---------------------------------------------------------------- resuming


def assert_resumes(config, at):
    whole = run(config, limit=30)
    for stop in at:
        if stop >= len(whole):
            continue
        position = json.loads(json.dumps(whole[stop - 1].position))
        assert run(config, limit=30 - stop, position=position) == whole[stop:]


def test_a_resumed_stream_goes_on_with_the_same_steps(config):
    assert_resumes(config, range(1, 30, 3))


def test_a_resumed_mixture_too(mixed):
    assert_resumes(mixed, (1, 5, 8, 13))


def test_dropped_rows_are_counted_once_when_a_window_is_prepared_again(tmp_path):
    data = write(tmp_path / "a.jsonl", 53, {number: {"drop": "of no use"} for number in range(0, 53, 9)})
    for kind in ("rows", "by length", "packed"):
        config = config_of(data, **KINDS[kind], max_dropped_share=0.5)
        whole = run(config)
        assert whole[-1].dropped == {"of no use": 12}
        for stop in (1, 4, 9):
            assert run(config, position=whole[stop - 1].position) == whole[stop:]


# ---------------------------------------------------------------- ranks


@pytest.mark.parametrize("kind", ["rows", "by length", "packed", "streaming", "streaming, packed"])
def test_a_step_is_the_same_rows_on_any_number_of_processes(data, kind):
    one = run(config_of(data, per_device_train_batch_size=8, **KINDS[kind]), limit=14)
    four = config_of(data, per_device_train_batch_size=2, **KINDS[kind])
    ranks = [run(four, limit=14, rank=rank, world_size=4) for rank in range(4)]
    accumulated = config_of(data, per_device_train_batch_size=2, gradient_accumulation_steps=4, **KINDS[kind])
    assert run(accumulated, limit=14) == one
    for step, *shares in zip(one, *ranks, strict=True):
        together = [None] * len(step.units)
        for rank, share in enumerate(shares):
            together[rank::4] = share.units
        assert together == step.units
        assert all(share.rows_consumed == step.rows_consumed and share.last == step.last for share in shares)
        for key in ("epoch", "row", "unit", "consumed"):
            assert all(share.position[key] == step.position[key] for share in shares)


def test_a_dropped_row_leaves_its_slot_empty(tmp_path):
    data = write(tmp_path / "a.jsonl", 16, {1: {"drop": "no"}, 2: {"drop": "no"}})
    config = config_of(data, per_device_train_batch_size=2, train_sampling_strategy="sequential", max_dropped_share=0.5)
    ranks = [run(config, rank=rank, world_size=2) for rank in range(2)]
    assert [numbers(share[0]) for share in ranks] == [[[0]], [[3]]]
    assert ranks[0][-1].dropped == {"no": 2} and ranks[1][-1].dropped == {"no": 2}


# ---------------------------------------------------------------- worker processes


@pytest.fixture(autouse=True)
def others():
    """Processes that other tests have started and that go on, such as a server for the pretended device."""
    OTHERS[:] = [child.pid for child in multiprocessing.active_children()]


OTHERS: list[int] = []


def children():
    return [each for each in multiprocessing.active_children() if each.is_alive() and each.pid not in OTHERS]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(config, workers):
    config.num_train_epochs = 1.5
    alone = run(config, limit=20)
    config.dataloader_num_workers = workers
    assert run(config, limit=20) == alone
    assert run(config, limit=20 - 5, position=alone[4].position) == alone[5:]
    assert not children()


def test_workers_change_nothing_in_a_mixture(mixed):
    alone = run(mixed, limit=20)
    mixed.dataloader_num_workers = 2
    assert run(mixed, limit=20) == alone


def test_workers_leave_the_random_state_alone(data):
    import torch

    before = torch.get_rng_state()
    run(config_of(data, dataloader_num_workers=1), limit=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_end_with_the_stream_however_it_ends(data):
    config = config_of(data, dataloader_num_workers=2)
    run(config)
    assert not children(), "at the end of the data"
    stream = stream_of(config)
    next(iter(stream))
    assert len(children()) == 2
    del stream
    assert not children(), "when it is let go of"


def test_a_worker_that_dies_is_an_error_and_not_a_wait(data):
    stream = stream_of(config_of(data, dataloader_num_workers=1, max_steps=10_000))
    steps = iter(stream)
    next(steps)
    children()[0].kill()
    with pytest.raises(FtHostError, match="a process that prepares rows was killed by SIGKILL, out of memory perhaps"):
        for _ in range(100):
            next(steps)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_row_is_named_when_it_is_reached(tmp_path, workers):
    data = write(tmp_path / "a.jsonl", 53, {30: {"bad": "column text: found nothing"}})
    config = config_of(data, train_sampling_strategy="sequential", dataloader_num_workers=workers)
    stream = stream_of(config)
    steps = iter(stream)
    done = [next(steps) for _ in range(7)]
    assert done[-1].rows_consumed == 28
    with pytest.raises(DataError) as caught:
        next(steps)
    assert str(caught.value) == f"{data}, line 31: column text: found nothing"
    assert type(caught.value) is DataError
    del stream, steps
    assert not children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_line_that_is_not_json_likewise(tmp_path, workers):
    path = tmp_path / "a.jsonl"
    write(path, 30)
    lines = path.read_text().splitlines()
    lines[20] = lines[20][:-1]
    path.write_text("\n".join(lines))
    config = config_of(str(path), train_sampling_strategy="sequential", dataloader_num_workers=workers)
    steps = iter(stream_of(config))
    assert len([next(steps) for _ in range(5)]) == 5
    with pytest.raises(DataError, match="a.jsonl, line 21: not JSON: Expecting ',' delimiter at column"):
        next(steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_of_the_method_keeps_its_traceback_and_names_the_row(tmp_path, workers):
    data = write(tmp_path / "a.jsonl", 8, {5: {"bug": True}})
    config = config_of(data, train_sampling_strategy="sequential", dataloader_num_workers=workers)
    steps = iter(stream_of(config))
    next(steps)
    with pytest.raises(FtHostError if workers else ZeroDivisionError) as caught:
        next(steps)
    said = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert "a bug of the method" in said and "a.jsonl, line 6" in said


# ---------------------------------------------------------------- laziness


@pytest.mark.parametrize("rows", [500, 5000])
@pytest.mark.parametrize(
    "fields, most",
    [
        ({}, 4),
        ({"train_sampling_strategy": "sequential"}, 4),
        ({"packing": True, "max_length": 50, "data_window": 300}, 300),
        ({"train_sampling_strategy": "group_by_length", "data_window": 300}, 300),
        ({"dataset_streaming": True, "max_steps": 3, "data_window": 300}, 4),
        ({"dataset_streaming": True, "max_steps": 3, "data_window": 300, "packing": True, "max_length": 50}, 300),
    ],
)
def test_no_more_rows_are_prepared_before_the_first_step_than_it_needs(tmp_path, rows, fields, most):
    log = tmp_path / "log"
    log.touch()
    config = config_of(write(tmp_path / "a.jsonl", rows), **fields)
    source, counting = open_train(config), partial(prepare, log=str(log))
    check_first_rows(source, counting, config)
    checked = log.read_text().split()
    assert len(checked) == 64
    log.write_text("")
    stream = TrainStream(source, counting, config)
    stream.planned_steps()
    next(iter(stream))
    first = log.read_text().split()
    assert len(first) == most
    window = {str(number) for number in range(rows)} if most == 4 else set(first)
    assert set(checked) <= window, "what is checked is of the first window"


def test_workers_prepare_a_bounded_number_of_rows_ahead(tmp_path):
    log = tmp_path / "log"
    log.touch()
    config = config_of(write(tmp_path / "a.jsonl", 3000), dataloader_num_workers=2)
    stream = TrainStream(open_train(config), partial(prepare, log=str(log)), config)
    next(iter(stream))
    time.sleep(0.5)
    assert len(log.read_text().split()) <= 4 * (1 + 2 * 2 + 1), "steps of 4 rows: one taken, two a worker, one in work"
    stream.close()


# ---------------------------------------------------------------- dropped rows


def test_too_many_dropped_rows_are_refused_with_reasons_places_and_what_to_do(tmp_path):
    change = {number: {"drop": "no supervised token within max_length"} for number in range(0, 40, 2)}
    data = write(tmp_path / "a.jsonl", 40, change | {1: {"drop": "empty"}})
    config = config_of(data, train_sampling_strategy="sequential")
    with pytest.raises(DataError) as caught:
        check_first_rows(open_train(config), prepare, config)
    said = str(caught.value).replace(str(tmp_path) + "/", "")
    assert said.splitlines() == [
        "21 of the first 40 rows were dropped (52%); max_dropped_share is 0.1",
        "  20 × no supervised token within max_length (first: a.jsonl, line 1, a.jsonl, line 3, a.jsonl, line 5)",
        "  1 × empty (first: a.jsonl, line 2)",
        "  max_length is 1024 and cuts rows (keep_start): raise it, or keep the end of rows with truncation_mode",
    ]
    check_first_rows(open_train(config), prepare, config_of(data, max_dropped_share=0.6))


def test_the_share_is_judged_on_the_first_window_and_then_on_all_rows_seen(tmp_path):
    late = {number: {"drop": "no"} for number in range(60, 80)}
    data = write(tmp_path / "a.jsonl", 100, late | {0: {"drop": "no"}, 1: {"drop": "no"}})
    config = config_of(data, train_sampling_strategy="sequential", data_window=40)
    check_first_rows(open_train(config), prepare, config)
    steps = iter(stream_of(config))
    done = 0
    with pytest.raises(DataError, match=r"of the first \d+ rows were dropped"):
        for step in steps:
            done = step.rows_consumed
    assert done == 64, "2 of 4 rows in the first step are let pass, 6 + 2 of 68 are too many"
    few = config_of(data, train_sampling_strategy="sequential", data_window=40, max_dropped_share=0.3)
    assert sum(run(few)[-1].dropped.values()) == 44


def test_data_without_rows(tmp_path):
    class Nothing:
        num_rows, columns, fingerprint = 0, [], ""

        def order(self, seed, epoch, shuffled):
            return range(0).__getitem__

    with pytest.raises(DataError, match="no rows"):
        check_first_rows(Nothing(), prepare, config_of("x"))
    with pytest.raises(DataError, match="no rows"):
        list(TrainStream(Nothing(), prepare, config_of("x")))


def test_a_wrong_result_of_ft_prepare_is_named(data):
    config = config_of(data)
    for wrong in (lambda raw: None, lambda raw: {"input_ids": [1]}):
        with pytest.raises(TypeError, match="ft_prepare gave .* expected rows that hold `length`, or Drop"):
            check_first_rows(open_train(config), wrong, config)


def test_rows_that_a_method_does_not_let_be_cut(data):
    config = config_of(data, packing=True, max_length=50, packing_strategy="wrapped")
    stream = TrainStream(open_train(config), lambda raw: {"chosen_ids": [1], "length": 1}, config)
    with pytest.raises(ConfigError, match="packing_strategy: wrapped cuts rows"):
        next(iter(stream))


# ---------------------------------------------------------------- evaluation rows


def test_evaluation_rows(tmp_path):
    data = write(tmp_path / "a.jsonl", 30, {3: {"drop": "no"}})
    config = config_of(data)
    rows, raw = eval_rows(open_source(data), prepare, config)
    assert [row["input_ids"][0] for row in rows] == [number for number in range(30) if number != 3]
    assert [row["number"] for row in raw] == list(range(30))
    config.eval_max_rows = 5
    with pytest.raises(DataError, match="1 of the first 5 rows were dropped"):
        eval_rows(open_source(data), prepare, config)


def test_the_stream_does_not_outlive_its_parent(tmp_path):
    """Workers of a training that is killed end by themselves."""
    import signal
    import subprocess
    import sys

    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import test_data_stream as t\n"
        "s = t.stream_of(t.config_of(sys.argv[1], dataloader_num_workers=1)); next(iter(s))\n"
        "print(t.children()[0].pid, flush=True); time.sleep(60)\n"
    )
    data = write(tmp_path / "a.jsonl", 5000)
    parent = subprocess.Popen([sys.executable, "-c", code, data, os.path.dirname(__file__)], stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 15
    while os.path.exists(f"/proc/{worker}/stat") and open(f"/proc/{worker}/stat").read().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker is still there"
        time.sleep(0.2)
