"""Rollouts that are recorded, and runs that learn from them again: exact, whole after a resume, and refused by name
where they mean nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_grpo.config import GRPOConfig
from ft_rloo.config import RLOOConfig

import ft_host
from ft_host.cli.train import run as train_command
from ft_host.errors import ConfigError, DataError, FtHostError, UsageError
from ft_host.rollouts.drawing import RolloutMade
from ft_host.run import Run
from ft_host.rundir.recorded import cut, file_of, recorded
from ft_host.scheduling import record
from ft_host.scheduling.packed import read_packed, write_packed
from ft_host.scheduling.record import Recorded, dealt
from ft_host.testing import lines, run_in, save_tiny, sentence, tiny_llama, tiny_run, tiny_tokenizer
from ft_host.testing.invariants import as_if_killed, assert_same, assert_same_weights, beside, resume_in, train_apart

REWARD = """
def wordy(completions, **columns):
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Rollouts of two prompts, of completions from one token to the 24 that are allowed."""
    folder = tmp_path_factory.mktemp("replay")
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 8  # some end soon, others don't
    save_tiny(folder / "model", model, tokenizer)
    (folder / "pays.py").write_text(REWARD, encoding="utf-8")
    noise = random.Random(4)
    rows = [{"prompt": f"{sentence(noise, 8)}? ", "number": index} for index in range(24)]
    return tiny_run(
        GRPOConfig,
        folder / "model",
        folder,
        rows,
        reward=[f"{folder / 'pays.py'}:wordy"],
        max_completion_length=24,
        num_generations=4,
        per_device_train_batch_size=8,
        save_steps=2,
        save_total_limit=None,
        rollouts="overlap",
        max_steps=5,
        logged_completions=4,
        # of what a replay must find again: a random state that is drawn from, and what the method itself keeps
        use_peft=True,
        lora_dropout=0.2,
        use_adaptive_entropy=True,
        entropy_target=2.0,
    )


@pytest.fixture(scope="module")
def run(config):
    return run_in(config, "run")


@pytest.fixture
def nothing_sampled(monkeypatch):
    """AssertionError where a run asks for a completion."""

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("something was sampled")

    monkeypatch.setattr(Run, "generate", asked)
    monkeypatch.setattr("ft_host.scheduling.inbox.Inbox.submit", asked)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "value",
    [
        list(range(50000, 50020)),
        [2**40 + n for n in range(10)],
        [2**70] * 9,
        [-1.5 * n for n in range(12)],
        [math.pi * n for n in range(12)],
        [1e300] * 10,
        [0.0, -0.0] * 5,
        [True, False, False] * 4,
        [7] * 100,
        [True] * 100,
        [1, 2.0, True, None, "a"] * 3,
        {"rows": [{"ids": [3] * 9 + [4], "deep": {"": 1, "x": [[1] * 10, [0.1] * 10]}}], "é\ud800": "\x00"},
        [],
        {},
    ],
)
def test_what_is_written_comes_back_value_by_value(tmp_path, value):
    write_packed(tmp_path / "file", value)
    found = read_packed(tmp_path / "file")
    assert repr(found) == repr(value)  # which tells 1, 1.0 and True apart, and 0.0 from -0.0


def test_numbers_that_are_none_come_back_too(tmp_path):
    values = [math.nan, math.inf, -math.inf, 0.5] * 3
    write_packed(tmp_path / "file", values)
    assert repr(read_packed(tmp_path / "file")) == repr(values)


def test_a_token_takes_some_bytes(tmp_path):
    noise = random.Random(0)
    rows = []
    for _ in range(16):
        ids = [noise.randrange(150000) for _ in range(1000)]
        logps = torch.tensor([noise.uniform(-9, 0) for _ in ids]).tolist()
        row = {"prompt_ids": [5] * 500 + list(range(300)), "completion_ids": ids, "sampling_logps": logps}
        rows.append(row | {"sampled": [True] * 1000})
    write_packed(tmp_path / "file", {"rows": rows})
    assert read_packed(tmp_path / "file") == {"rows": rows}
    assert (tmp_path / "file").stat().st_size < 8.5 * 16 * 1000


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: data[:-5], "can't be read"),
        (lambda data: b"", "can't be read"),
        (lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:], "is damaged: it doesn't match its checksum"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, harm, said):
    path = tmp_path / "3-0.safetensors"
    write_packed(path, {"rows": [list(range(100))]})
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=f"3-0.safetensors {said}"):
        read_packed(path)


def test_what_json_cannot_hold_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_packed(tmp_path / "file", {"rows": [torch.zeros(2)]})
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- a replay


def test_a_replay_has_the_losses_of_the_run_and_samples_nothing(config, run, nothing_sampled):
    again = run_in(config, "again", replay=str(run))
    assert max(line["rollouts/staleness_max"] for line in lines(run)) == 1  # or it would be the synchronous case
    assert_same(lines(run), lines(again), rel=0)
    assert_same_weights(run, again, rel=0)
    assert not (again / "rollouts").exists()
    samples = [(folder / "samples.jsonl").read_text() for folder in (run, again)]
    assert samples[0] and samples[0] == samples[1]


def test_a_replay_says_nothing_of_the_time_that_sampling_took(config, run):
    again = run_in(config, "timed", replay=str(run), max_steps=1)
    [line] = [json.loads(text) for text in (again / "metrics.jsonl").read_text().splitlines()]
    assert "perf/rollout_wait_time" not in line and "perf/weight_update_time" not in line
    assert line["perf/rollout_time"] > 0


def test_another_learning_rate_learns_from_the_same_rollouts(config, run):
    again = run_in(config, "slower", replay=str(run), learning_rate=config.learning_rate / 10)
    one, other = lines(run), lines(again)
    assert [line["reward"] for line in one] == [line["reward"] for line in other]
    assert one[0]["loss"] == other[0]["loss"]
    assert [line["grad_norm"] for line in one[2:]] != [line["grad_norm"] for line in other[2:]]


def test_a_resumed_run_replays_whole_and_its_second_attempt_replaces_what_came_after_the_checkpoint(config, run):
    folder = Path(config.output_dir) / "resumed"
    assert as_if_killed(run, folder) == 2
    later = file_of(folder, 3, 0)
    write_packed(later, {"of": "the first attempt"})
    (folder / "rollouts" / ".7-0.safetensors.tmp").write_bytes(b"killed")
    resume_in(dataclasses.replace(config, output_dir=str(folder)), folder)
    assert recorded(folder) == [0, 1, 2, 3, 4] and read_packed(later)["number"] == 3
    assert not list((folder / "rollouts").glob(".*"))
    again = run_in(config, "resumed-again", replay=str(folder))
    assert_same(lines(folder), lines(again), rel=0)


def test_a_run_that_goes_on_without_recording_keeps_no_rollout_of_what_it_repeats(config, run):
    folder = Path(config.output_dir) / "unrecorded"
    as_if_killed(run, folder)
    resume_in(dataclasses.replace(config, output_dir=str(folder), record_rollouts=False, max_steps=3), folder)
    assert recorded(folder) == [0, 1]


def test_an_evaluation_changes_nothing_of_a_replay(config, run):
    held_out = {"eval_dataset": config.dataset, "eval_max_rows": 2, "eval_steps": 1}
    again = run_in(config, "evaluated", replay=str(run), **held_out)
    assert_same(lines(run), lines(again), rel=0)
    assert len(lines(again, "eval")) == 5


def test_a_replay_goes_on_after_it_was_stopped(config, run, nothing_sampled):
    again = run_in(config, "stopped", replay=str(run), max_steps=2)
    resume_in(dataclasses.replace(config, output_dir=str(again), replay=str(run)), again)
    # the schedule of the first two steps was that of a shorter run; from there on the rows are the same
    assert [line["reward"] for line in lines(run)] == [line["reward"] for line in lines(again)]


def test_a_replay_begins_at_a_checkpoint_of_the_run(config, run, nothing_sampled):
    start = str(run / "checkpoints" / "step-2")
    again = run_in(config, "from-step-2", replay=str(run), resume_from_checkpoint=start)
    assert_same(lines(run), lines(again), rel=0)


def test_a_replay_ends_with_the_rollouts_of_a_run_that_was_stopped(config, run):
    folder = Path(config.output_dir) / "cut"
    shutil.copytree(run, folder)
    cut(folder, 2)
    again = run_in(config, "of-cut", replay=str(folder))
    assert_same(lines(run)[:3], lines(again), rel=0)
    assert "has no rollout after number 2: its replay ends here" in (again / "events.jsonl").read_text()


def test_the_weights_of_each_token_are_recorded(config, run):
    step = {number: json.loads(text)["step"] - 1 for number, text in enumerate(open(run / "metrics.jsonl"))}
    ages = []
    for number in recorded(run):
        kept = read_packed(file_of(run, number, 0))
        runs = [pairs for prompt in kept["prompts"] for pairs in prompt["versions"].values()]
        assert sum(count for pairs in runs for _, count in pairs) == sum(len(r["completion_ids"]) for r in kept["rows"])
        ages.append(max(step[number] - version for pairs in runs for version, _ in pairs))
    assert ages == [line["rollouts/staleness_max"] for line in lines(run)]


def test_a_synchronous_run_records_if_it_is_asked_to(config):
    sync = {"rollouts": "sync", "max_steps": 2}
    run = run_in(config, "sync", record_rollouts=True, **sync)
    assert_same(lines(run), lines(run_in(config, "sync-again", replay=str(run), **sync)), rel=0)
    assert not (run_in(config, "sync-not", **sync) / "rollouts").exists()


# ---------------------------------------------------------------- the command line


def test_the_command_takes_all_fields_from_the_run_and_flags_override_them(config, run, tmp_path, capsys):
    folder = tmp_path / "cli"
    words = ["--replay", str(run), "--output-dir", str(folder), "--max-steps", "2", "--learning-rate", "0.0005"]
    assert train_command([*words, "--dry-run"]) == 0
    assert f"replay: {run}" in capsys.readouterr().out
    assert train_command(words) == 0
    assert [line["reward"] for line in lines(folder)] == [line["reward"] for line in lines(run)][:2]
    record = json.loads((folder / "run.json").read_text())
    assert record["parent"] == str(run) and record["config"]["learning_rate"] == 0.0005
    assert record["config"]["reward"] == config.reward
    with pytest.raises(UsageError, match=rf"replay: {folder} has no recorded rollouts: it trained on those of {run}"):
        train_command(["--replay", str(folder)])


def test_a_method_beside_replay_and_a_replay_of_a_run_that_goes_on_are_refused(run):
    with pytest.raises(UsageError, match="--replay .*: the run knows its method and its config; unexpected grpo"):
        train_command(["grpo", "--replay", str(run)])
    with pytest.raises(UsageError, match="--replay needs the folder of a run whose rollouts"):
        train_command(["--replay"])
    with pytest.raises(ConfigError, match="--replay can't change when a run is resumed"):
        train_command(["--resume", str(run), "--replay", str(run)])


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, r"can't have another temperature \(1.0 then, 0.7 now\)"),
        ({"num_generations": 2}, "num_generations"),
        ({"rollouts": "sync"}, "rollouts"),
        ({"gradient_accumulation_steps": 2}, "has 2 prompts and 8 rows, and would now have 4 and 16"),
        ({"replay": "nowhere"}, "nowhere is not a run's folder"),
    ],
)
def test_what_would_make_the_rollouts_meaningless_is_refused_before_a_model_is_loaded(
    config, run, no_model, changes, said
):
    with pytest.raises((ConfigError, UsageError), match=said):
        run_in(config, "refused", **({"replay": str(run)} | changes))


def test_another_method_is_refused(config, run, no_model):
    names = ("model", "dataset", "reward", "use_cpu", "num_generations", "per_device_train_batch_size", "progress")
    fields = {name: getattr(config, name) for name in names}
    other = RLOOConfig(**fields, replay=str(run), output_dir=f"{config.output_dir}/rloo")
    with pytest.raises(ConfigError, match="is a run of ft-grpo:grpo, and this one is of ft-rloo:rloo"):
        ft_host.train(other)


def test_another_model_is_refused_and_one_that_has_moved_is_not(config, run, llama, tmp_path):
    with pytest.raises(ConfigError, match="its rollouts mean nothing to this model"):
        run_in(config, "other-model", replay=str(run), model=str(llama))
    shutil.copytree(config.model, tmp_path / "moved")
    again = run_in(config, "moved-model", replay=str(run), model=str(tmp_path / "moved"), max_steps=1)
    assert lines(again)[0]["loss"] == lines(run)[0]["loss"]


def test_other_data_is_refused_and_data_that_has_moved_is_not(config, run, tmp_path):
    shutil.copy(config.dataset, tmp_path / "moved.jsonl")
    again = run_in(config, "moved-data", replay=str(run), dataset=str(tmp_path / "moved.jsonl"), max_steps=1)
    assert lines(again)[0]["loss"] == lines(run)[0]["loss"]
    assert json.loads((again / "run.json").read_text())["parent"] == str(run)
    (tmp_path / "other.jsonl").write_text('{"prompt": "another"}\n' * 24)
    with pytest.raises(ConfigError, match=r"dataset: .*other.jsonl has .* rows.*: .* has sampled from"):
        run_in(config, "other-data", replay=str(run), dataset=str(tmp_path / "other.jsonl"))


def test_a_field_of_the_method_may_differ_and_it_is_said_what_of_it_counts(config, run):
    again = run_in(config, "epsilon", replay=str(run), epsilon=0.1, max_steps=1)
    said = (again / "events.jsonl").read_text()
    assert "epsilon 0.2 then and 0.1 now: the loss uses what is set now" in said


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"rollouts": "sync", "record_rollouts": None}, "rollouts: sync records them only with record_rollouts: true"),
        ({"record_rollouts": False}, "record_rollouts was false"),
        ({}, "it has no folder rollouts: it was stopped before the first one, or the folder was removed"),
    ],
)
def test_a_run_without_rollouts_is_refused_with_the_reason(config, run, tmp_path, no_model, values, why):
    made = json.loads((run / "run.json").read_text())
    made["config"] |= values
    (tmp_path / "run.json").write_text(json.dumps(made))
    with pytest.raises(UsageError, match=f"has no recorded rollouts: {why}"):
        run_in(config, "none", replay=str(tmp_path), **values)


def test_a_missing_rollout_and_a_damaged_one_are_named(config, run, tmp_path, no_model):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "model"))
    file_of(folder, 1, 0).unlink()
    with pytest.raises(UsageError, match="lacks rollout 1, and has others up to 4"):
        run_in(config, "lacking", replay=str(folder))
    shutil.copy(file_of(run, 1, 0), file_of(folder, 1, 0))
    data = file_of(folder, 1, 0).read_bytes()
    file_of(folder, 1, 0).write_bytes(data[: len(data) // 2])
    rollouts = Recorded(run=SimpleNamespace(world_size=1, rank=0), prompts=None, source=folder)
    with pytest.raises(DataError, match=r"1-0.safetensors can't be read"):
        rollouts.make(1, {})


# ---------------------------------------------------------------- several processes


def made(group: int, rows: int) -> list[dict[str, Any]]:
    return [{"group": group, "row": f"{group}.{index}"} for index in range(rows)]


def test_rows_of_other_ranks_are_dealt_out_by_whole_groups():
    parts = [
        {"rows": [*made(7, 2), *made(2, 1)], "samples": [{"of": "7.0"}, {"of": "7.1"}, {"of": "2.0"}]},
        {"rows": made(4, 2), "samples": [{"of": "4.0"}, {"of": "4.1"}]},
    ]
    found = [dealt(parts, rank, 2) for rank in range(2)]
    assert [[row["row"] for row in rows] for rows, _ in found] == [["2.0", "7.0", "7.1"], ["4.0", "4.1"]]
    assert all([row["row"] for row in rows] == [each["of"] for each in samples] for rows, samples in found)
    [(rows, samples)] = [dealt([parts[0] | {"samples": []}, parts[1] | {"samples": []}], 0, 1)]
    assert [row["group"] for row in rows] == [2, 4, 4, 7, 7] and samples == []


def test_a_rank_reads_its_own_part_and_all_of_them_on_another_number_of_ranks(tmp_path):
    place = {"position": None, "epoch": 0.0, "rows_consumed": 0}
    for rank in range(2):
        kept = {"world_size": 2, "seed": 1, "rows": made(rank, 2), "samples": [], "place": place, "metrics": {}}
        (tmp_path / "rollouts").mkdir(exist_ok=True)
        write_packed(file_of(tmp_path, 0, rank), kept)

    def of(rank, world_size):
        run = SimpleNamespace(rank=rank, world_size=world_size, config=SimpleNamespace(seed=2))
        return [row["row"] for row in Recorded(run=run, prompts=None, source=tmp_path).make(0, {}).rows]

    assert [of(rank, 2) for rank in range(2)] == [["0.0", "0.1"], ["1.0", "1.1"]]
    assert of(0, 1) == ["0.0", "0.1", "1.0", "1.1"]
    assert [of(rank, 3) for rank in range(3)] == [["0.0", "0.1"], ["1.0", "1.1"], []]
    file_of(tmp_path, 0, 1).unlink()
    with pytest.raises(DataError, match=r"0-1.safetensors is missing: .* recorded rollout 0 on more processes"):
        of(0, 1)


# ---------------------------------------------------------------- disks


def test_a_full_disk_ends_the_run_by_name_and_no_prompt_is_lost(config, monkeypatch):
    """The rollout that can't be recorded was taken already: the checkpoint must have its prompts again."""
    write = record.write_packed

    def full(path: Path, value: Any) -> None:
        if value["number"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, value)

    epoch = {"max_steps": -1, "num_train_epochs": 1.0}
    monkeypatch.setattr(record, "write_packed", full)
    with pytest.raises(FtHostError, match=r"rollout 2 could not be recorded: the disk is full \(.*2-0.safetensors\)"):
        run_in(config, "full", **epoch)
    folder = Path(config.output_dir) / "full"
    monkeypatch.setattr(record, "write_packed", write)
    resume_in(beside(config, "full", **epoch), folder)
    rows = [row for number in recorded(folder) for row in read_packed(file_of(folder, number, 0))["rows"]]
    prompts = [tuple(row["prompt_ids"]) for row in rows]
    assert len(rows) == 24 * 4 and {prompts.count(each) for each in set(prompts)} == {4}


def test_what_a_rank_could_not_write_is_said_on_all(tmp_path):
    """The other rank has written its part, and learns from the exchange that the rollout isn't recorded."""
    elsewhere = "rollout 0 could not be recorded: the disk quota is used up"
    run = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path),
        rank=1,
        step=0,
        world_size=2,
        config=SimpleNamespace(seed=1),
        gather=lambda value: [elsewhere, value],
    )
    (tmp_path / "rollouts").mkdir()
    kept = RolloutMade(rows=[], samples=[], place={})
    source = SimpleNamespace(make=lambda number, place: kept)
    with pytest.raises(FtHostError, match="disk quota is used up; record_rollouts: false goes on without") as raised:
        record.Recorder(run=run, rollouts=source).make(0, {})
    assert raised.value.everywhere


# ---------------------------------------------------------------- other modes, in processes


@pytest.mark.slow
def test_an_asynchronous_run_that_went_on_replays_whole(config):
    config = dataclasses.replace(config, rollouts="async", max_staleness=2)
    whole, folder = run_in(config, "async"), Path(config.output_dir) / "async-resumed"
    first = as_if_killed(whole, folder)
    resume_in(dataclasses.replace(config, output_dir=str(folder)), folder)
    assert recorded(folder) == [0, 1, 2, 3, 4]
    assert_same(lines(whole)[:first], lines(folder)[:first], rel=0)
    for name in (whole, folder):
        assert_same(lines(name), lines(run_in(config, f"{name.name}-again", replay=str(name))), rel=0)


@pytest.mark.slow
def test_a_run_on_two_processes_goes_on_and_replays_on_one(config):
    """Each rank had prompts of its own under way: one goes on with all of them."""
    two = beside(config, "two", per_device_train_batch_size=4, max_steps=2)
    train_apart(two, 2)
    folder = Path(two.output_dir)
    assert {path.name for path in (folder / "rollouts").iterdir()} == {
        f"{n}-{r}.safetensors" for n in (0, 1) for r in (0, 1)
    }
    saved = [json.loads((folder / f"checkpoints/step-2/buffer-{rank}.json").read_text()) for rank in range(2)]
    assert all(buffer["ahead"]["ledger"]["units"] for buffer in saved), "nothing was under way: this tests nothing"
    resume_in(dataclasses.replace(config, output_dir=str(folder), max_steps=-1, num_train_epochs=1.0), folder)
    parts = [read_packed(path) for path in (folder / "rollouts").iterdir()]
    prompts = [tuple(row["prompt_ids"]) for part in parts for row in part["rows"]]
    assert len(prompts) == 24 * 4 and {prompts.count(each) for each in set(prompts)} == {4}
    again = run_in(config, "two-on-one", replay=str(folder), max_steps=-1, num_train_epochs=1.0)
    assert [line["reward"] for line in lines(again)] == [line["reward"] for line in lines(folder)]
