"""What a run writes is read back the same: lines with any character, torn lines, damaged ones, and lines that stand
twice."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from ft_host.errors import UsageError
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.lines import append_line, read_json_lines, read_whole, settled
from ft_host.testing.runs import made_finding, make_run
from ft_host.training.launch import train
from ft_host.util.jsonl import json_line, json_text, visible

# What str.splitlines cuts at, what UTF-8 can't hold, and what a terminal acts on.
ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei\rj\x00k\ud83dl\udfffm\x9bn\ufeffo\u202ep\U0001f600"


def metrics(folder):
    return [(line["kind"], line["step"]) for line in RunFolder(folder).read("metrics.jsonl")]


def logged(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


# ---------------------------------------------------------------- one writer, one reader


def test_a_line_with_any_character_is_one_line_for_every_reader_and_is_read_back_the_same(tmp_path):
    entry = {"step": 1, "text": ODD, ODD: [{"deep": ODD}]}
    append_line(tmp_path / "samples.jsonl", entry)
    assert len((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert read_whole(tmp_path / "samples.jsonl") == [entry]
    assert read_json_lines(tmp_path / "samples.jsonl") == ([entry], [])


def test_numbers_that_are_not_finite_become_words_at_any_depth():
    deep = {"a": [{"b": math.nan, "c": (math.inf, [-math.inf])}], "d": np.float32("nan")}
    text = json_line(deep)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [{"b": "nan", "c": ["inf", ["-inf"]]}], "d": "nan"}
    exact = json.loads(json_text(deep["a"], words=False))
    assert math.isnan(exact[0]["b"]) and exact[0]["c"] == [math.inf, [-math.inf]]


def test_what_json_cannot_hold_is_written_as_its_text():
    assert json.loads(json_line({("a", 1): {3, 1}, "n": np.int64(7), "x": np.float32(0.5), "c": complex})) == {
        "('a', 1)": [1, 3],
        "n": 7,
        "x": 0.5,
        "c": "<class 'complex'>",
    }


def test_lines_of_earlier_versions_with_such_characters_are_read(tmp_path):
    file = tmp_path / "samples.jsonl"  # 0.5 wrote them as they are
    file.write_text('{"step": 1, "prompt": "p\u2028x\u0085y"}\n{"step": 2}\n', encoding="utf-8")
    assert read_whole(file) == [{"step": 1, "prompt": "p\u2028x\u0085y"}, {"step": 2}]


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "findings.jsonl", "events.jsonl", "timeline.jsonl"])
def test_the_line_after_a_torn_one_is_not_glued_to_it(tmp_path, name):
    file = tmp_path / name
    whole = {
        "step": 1,
        "kind": "train",
        "code": "A",
        "fingerprint": "A",
        "state": "open",
        "severity": "info",
        "side": "a",
    }
    append_line(file, whole)
    for torn in (b'{"step": 2, "te', '{"text": "né'.encode()[:-1], b"\0\0\0"):
        file.write_bytes(file.read_bytes() + torn)
        assert read_whole(file)[-1] == whole
        assert "cut off" in read_json_lines(file)[1][0]
        append_line(file, whole)
    assert logged(file) == [whole] * 4


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}')
    append_line(file, {"text": "c"})
    assert logged(file) == [{"text": "a"}, {"text": "b"}, {"text": "c"}]


def test_of_lines_that_stand_twice_each_counts_once():
    def line(kind, step, loss=0):
        return {"kind": kind, "step": step, "loss": loss}

    twice = [line("eval", 0), line("train", 1), line("train", 2), line("eval", 2), line("eval", 2, 9)]
    assert settled(twice) == [*twice[:3], twice[4]]
    back = [*twice, line("train", 2, 5), line("eval", 2, 6), line("train", 3)]
    assert settled(back) == [*twice[:2], *back[5:]]


# ---------------------------------------------------------------- terminals


def test_a_terminal_acts_on_nothing_that_a_run_printed():
    assert visible("a\x1b[31mb\x9bc\rd\x07\ud83d\u202e\ttab\nline") == (
        "a\\x1b[31mb\\x9bc\\rd\\x07\\ud83d\\u202e\ttab\nline"
    )


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def odd_run(tiny, tmp_path_factory):
    """A run of two steps whose held-out rows hold everything that cuts a line; a checkpoint at each step."""
    from ft_sft.config import SFTConfig

    folder = tmp_path_factory.mktemp("odd")
    rows = [
        {"prompt": f"{ODD.replace(chr(0xD83D), '').replace(chr(0xDFFF), '')}{n}", "completion": f" it is {n}"}
        for n in range(3)
    ]
    (folder / "held.jsonl").write_text("".join(json_line(row) for row in rows), encoding="utf-8")
    (folder / "pays.py").write_text(
        "def odd(completions, log_extra, **columns):\n"
        f"    log_extra('seen', [[{ODD!r}, float('nan'), {{'deep': [float('-inf')]}}]] * len(completions))\n"
        "    return [0.5] * len(completions)\n"
    )
    config = SFTConfig(
        model=str(tiny / "model"),
        dataset=str(tiny / "train.jsonl"),
        eval_dataset=str(folder / "held.jsonl"),
        eval_reward=[f"{folder / 'pays.py'}:odd"],
        max_completion_length=4,
        per_device_train_batch_size=4,
        max_steps=2,
        save_steps=1,
        eval_steps=1,
        save_total_limit=None,
        output_dir=str(folder / "run"),
        progress="quiet",
    )
    train(config)
    return config


@pytest.fixture
def copied(odd_run, tmp_path):
    """A copy of it, and its config."""
    folder = tmp_path / "run"
    shutil.copytree(odd_run.output_dir, folder)
    return folder, dataclasses.replace(odd_run, output_dir=str(folder))


WHOLE = [("eval", 0), ("train", 1), ("eval", 1), ("train", 2), ("eval", 2)]


def evaluated(folder):
    return [sample["step"] for sample in RunFolder(folder).read("samples.jsonl")]


def test_a_run_with_odd_rows_goes_on(copied):
    folder, config = copied
    assert metrics(folder) == WHOLE
    seen = RunFolder(folder).read("samples.jsonl")[-1]["extra"]["seen"]
    assert seen == [ODD, "nan", {"deep": ["-inf"]}]  # half a character and numbers that JSON lacks, as they were
    assert train(dataclasses.replace(config, max_steps=3), resume=folder).steps == 3
    assert metrics(folder) == [*WHOLE, ("train", 3), ("eval", 3)]
    assert evaluated(folder) == [step for step in (0, 1, 2, 3) for _ in range(3)]


def test_a_finished_run_says_so_and_changes_nothing(copied, capfd):
    folder, config = copied
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = train(config, resume=folder)
    assert (done.steps, done.failed, done.folder) == (2, False, folder)
    assert done.metrics["eval_loss"] == RunFolder(folder).read("metrics.jsonl")[-1]["eval_loss"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    from ft_host.rundir.opening import Resuming
    from ft_host.training.finish import already_finished

    manifest = json.loads((folder / "run.json").read_text())
    manifest["config"]["progress"] = "lines"
    (folder / "run.json").write_text(json.dumps(manifest))
    assert already_finished(dataclasses.replace(config, progress="lines"), folder, Resuming()).steps == 2
    assert "has finished, after 2 steps: nothing is left to do" in capfd.readouterr().err


@pytest.mark.parametrize("killed", ["while the model is written", "within the evaluation", "before it"])
def test_an_evaluation_stands_once_however_the_run_was_killed(copied, killed):
    folder, config = copied
    RunFolder.open(folder).update(status="running", finished=None)
    shutil.rmtree(folder / "model")
    log, samples = folder / "metrics.jsonl", folder / "samples.jsonl"
    if killed != "while the model is written":
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    if killed == "within the evaluation":
        samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:-2]))
    if killed == "before it":
        samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:-3]))
    train(config, resume=folder)
    assert metrics(folder) == WHOLE
    assert evaluated(folder) == [step for step in (0, 1, 2) for _ in range(3)]
    assert (folder / "model").is_dir()


def test_killed_between_an_evaluation_and_the_checkpoint_of_its_step(copied):
    folder, config = copied
    RunFolder.open(folder).update(status="running", finished=None)
    shutil.rmtree(folder / "checkpoints" / "step-2")
    train(config, resume=folder)
    assert metrics(folder) == WHOLE
    assert evaluated(folder) == [step for step in (0, 1, 2) for _ in range(3)]


def test_lines_that_an_earlier_version_wrote_twice_are_mended_on_resume(copied):
    folder, config = copied
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + log.read_bytes().splitlines(keepends=True)[-1])
    assert metrics(folder)[-2:] == [("eval", 2), ("eval", 2)]
    train(dataclasses.replace(config, logging_steps=7), resume=folder)
    assert metrics(folder) == WHOLE


def test_a_run_resumed_at_its_end_repeats_no_finding(copied):
    folder, config = copied
    before = logged(folder / "findings.jsonl")
    assert before
    train(dataclasses.replace(config, logging_steps=7), resume=folder)
    assert logged(folder / "findings.jsonl") == before


def test_a_finding_whose_line_was_lost_is_written_on_resume(copied):
    """Killed between a line of metrics and that of its finding."""
    folder, config = copied
    before = logged(folder / "findings.jsonl")
    (folder / "findings.jsonl").write_text("")
    train(dataclasses.replace(config, max_steps=3), resume=folder)
    found = {line["fingerprint"] for line in logged(folder / "findings.jsonl")}
    assert {line["fingerprint"] for line in before if line["state"] == "open"} <= found


BAD = {
    "no JSON": b'{"step": 1,,}\n',
    "a list": b"[1, 2]\n",
    "a line without step and kind": b'{"loss": 3}\n',
    "a step that is text": b'{"step": "1", "kind": "train"}\n',
    "bytes": b"\xff\xfe\x00\x80\n",
    "brackets": b"[" * 100_000 + b"\n",
    "digits": b'{"step": 1' + b"0" * 5000 + b', "kind": "train"}\n',
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "findings.jsonl", "timeline.jsonl"])
def test_a_bad_line_in_the_middle_is_refused_by_file_and_line(copied, name, what):
    folder, config = copied
    file = folder / name
    first = file.read_bytes() if file.exists() else b""
    line = first.count(b"\n") + 1
    file.write_bytes(first + BAD[what] + b'{"step": 99}\n')
    with pytest.raises(UsageError) as refused:
        train(dataclasses.replace(config, max_steps=3), resume=folder)
    assert f"{file}, line {line}: " in str(refused.value) and f"move {name} away" in str(refused.value)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"  # nothing was touched


ODD_VALUES = ("[1]", '{"a": {"b": 1}}', "NaN", "1" + "0" * 400)


def test_commands_bear_any_value_in_any_line(tmp_path, monkeypatch, capsys):
    """One value after the other in the last line of each file; an unexpected error would exit with 1."""
    from ft_host.cli import main

    folder = make_run(tmp_path / "a", steps=2, eval_steps=1, rollouts=True, findings=[made_finding()])
    monkeypatch.chdir(tmp_path)
    for name, places in {
        "metrics.jsonl": ("step", "kind", "eval_loss"),
        "samples.jsonl": ("step", "kind", "prompt", "completion", "rewards", "advantage", "extra"),
        "findings.jsonl": ("severity", "evidence", "remedies", "first_step", "message"),
        "events.jsonl": ("time", "level", "text"),
    }.items():
        content = (folder / name).read_bytes()
        *_, line = content.strip().split(b"\n")
        for place in places:
            for value in ODD_VALUES:
                mark = json.dumps(json.loads(line) | {place: "HERE"}).replace('"HERE"', value)
                (folder / name).write_bytes(content + mark.encode() + b"\n")
                for command in (["runs", "."], ["report", "a"], ["diagnose", "a"]):
                    code = main(command)
                    assert code == 0, (command, name, place, value[:20], capsys.readouterr().err)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("what", BAD)
def test_commands_show_what_there_is_of_a_damaged_run(odd_run, copied, what, capsys):
    from ft_host.cli import main

    folder, _ = copied
    for name in ("metrics.jsonl", "samples.jsonl", "findings.jsonl", "events.jsonl", "timeline.jsonl"):
        file = folder / name
        file.write_bytes((file.read_bytes() if file.exists() else b"") + BAD[what] + b'{"kind": ["x"], "step": NaN}\n')
    page = folder.parent / "page.html"
    for command in (
        ["runs", str(folder.parent)],
        ["runs", str(folder.parent), "--json"],
        ["report", str(folder)],
        ["compare", str(folder), odd_run.output_dir, "--output", str(page)],
        ["diagnose", str(folder)],
        ["diagnose", str(folder), "--format", "json"],
        ["diagnose", str(folder), "--format", "sarif"],
    ):
        assert main(command) == 0, command
    said = capsys.readouterr().out + (folder / "report.html").read_text()
    assert re.search(r"metrics\.jsonl(, line 6:|: \d lines without a kind)", said)
