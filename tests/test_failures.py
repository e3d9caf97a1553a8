"""Any exception ends a run by name and place, keeps its traceback, is a finding, and loses no step that was made."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

import ft_host
from ft_host.errors import DataError, FtHostError, HookError, Interrupted
from ft_host.rundir.checkpoints import newest
from ft_host.rundir.folder import RunFolder
from ft_host.testing.invariants import assert_same, assert_same_weights, lines, run_in
from ft_host.training import checkpoint, launch
from ft_host.util.disk import disk_problem
from ft_host.util.signals import Signals, Stop, caught

QUICK = {"eval_dataset": None, "eval_on_start": False, "save_steps": 0}
# A hook, and the body that breaks it; `late` is true from the third step on.
HOOKS = {
    "ft_prepare": "def ft_prepare(row, tokenizer, config):\n    raise KeyError('x')",
    "ft_collate": "def ft_collate(rows, tokenizer, config):\n    raise KeyError('x')",
    "ft_step": "def ft_step(rows, run):\n    if run.step == 2: raise KeyError('x')",
    "ft_annotate": "def ft_annotate(rows, run):\n    if run.step == 2: raise KeyError('x')",
    "ft_loss": (
        "def ft_loss(model, batch, run):\n    if run.step == 2: raise KeyError('x')\n"
        "    return ft_sft.method.ft_loss(model, batch, run)"
    ),
    "ft_models": "def ft_models(config):\n    raise KeyError('x')",
    "ft_close": "def ft_close(run):\n    raise KeyError('x')",
}


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def finding(folder: Path) -> dict:
    found = [each for each in RunFolder(folder).read("findings.jsonl") if each["code"] == "SYS005"]
    return {each["metric"]: each["value"] for each in found[0]["evidence"]}


@pytest.mark.parametrize("hook", HOOKS)
def test_any_exception_of_a_hook_names_plugin_and_line(config, sft_with, hook):
    kind = sft_with(f"@hookimpl\n{HOOKS[hook]}\n")
    broken = kind(**dataclasses.asdict(config) | QUICK | {"output_dir": config.output_dir + "/a", "max_steps": 3})
    with pytest.raises(HookError, match=rf"{hook} of the method .*KeyError: 'x' \(.*\.py, line \d+\)"):
        ft_host.train(broken)
    folder = Path(broken.output_dir)
    if hook in ("ft_step", "ft_annotate", "ft_loss"):
        assert record(folder)["status"] == "failed"
        assert newest(folder / "checkpoints")[0].name == "step-2", "the last whole step is lost"
        assert finding(folder)["watch/failed"] == "hook" and hook in finding(folder)["watch/failed_hook"]
        assert "KeyError: 'x'" in (folder / "traceback.txt").read_text()
        assert str(folder / "traceback.txt") in record(folder)["error"]
    if hook == "ft_close":
        assert record(folder)["status"] == "finished" and (folder / "model").is_dir()
        assert finding(folder)["watch/failed"] == "hook"


@pytest.mark.parametrize("what", ["SystemExit(3)", "RecursionError('deep')", "MemoryError()", "OSError(5, 'eio', 'f')"])
def test_whatever_a_hook_raises_ends_the_run_with_an_error_of_the_host(config, sft_with, what):
    source = HOOKS["ft_loss"].replace("KeyError('x')", what)
    kind = sft_with(f"@hookimpl\n{source}\n")
    with pytest.raises(FtHostError, match="step-2 is intact"):
        ft_host.train(kind(**dataclasses.asdict(config) | QUICK | {"output_dir": config.output_dir + "/a"}))
    assert record(Path(config.output_dir, "a"))["status"] == "failed"


def test_a_run_that_goes_on_after_an_error_is_as_if_there_had_been_none(config, sft_with, tmp_path):
    source = (
        "@hookimpl\ndef ft_loss(model, batch, run):\n"
        f"    if run.step == 3 and not os.path.exists({str(tmp_path / 'mended')!r}):\n"
        "        torch.rand(7)\n        run.state['half'] = 1\n        raise KeyError('x')\n"
        "    return ft_sft.method.ft_loss(model, batch, run)\n"
    )
    kind = sft_with("import os\n" + source)
    fields = dataclasses.asdict(config) | QUICK | {"use_peft": True, "lora_dropout": 0.5}
    with pytest.raises(HookError):
        ft_host.train(kind(**fields | {"output_dir": config.output_dir + "/broken"}))
    (tmp_path / "mended").touch()
    broken, whole = (Path(config.output_dir, name) for name in ("broken", "whole"))
    launch.train(kind(**fields | {"output_dir": str(broken)}), resume=broken)
    ft_host.train(kind(**fields | {"output_dir": str(whole)}))
    assert_same(lines(whole), lines(broken), rel=0)
    assert_same_weights(whole, broken, rel=0)


def test_a_state_that_a_checkpoint_cannot_hold_is_refused_by_name(config, sft_with):
    kind = sft_with("@hookimpl\ndef ft_step(rows, run):\n    run.state['mean'] = torch.zeros(2)\n")
    with pytest.raises(HookError, match=r"keeps run.state\['mean'\], a Tensor of shape \(2,\).*tolist"):
        ft_host.train(kind(**dataclasses.asdict(config) | QUICK | {"output_dir": config.output_dir + "/a"}))


def test_an_error_before_there_is_a_folder_says_how_to_see_more(config, monkeypatch):
    def broken(config):
        raise AttributeError("a library has changed")

    monkeypatch.setattr("ft_host.data.load_tokenizer", broken)
    with pytest.raises(FtHostError, match=r"(?s)AttributeError: a library has changed \(.*FT_HOST_TRACEBACK=1"):
        run_in(config, "a", **QUICK)


# ---------------------------------------------------------------- rows


def bad_row(tiny: Path, file: Path, row: str, at: int = 33) -> dict:
    rows = (tiny / "train.jsonl").read_text().splitlines()
    rows[at] = row
    file.write_text("\n".join(rows) + "\n")
    return QUICK | {"dataset": str(file), "train_sampling_strategy": "sequential", "data_window": 8}


HALF = '"half an emoji \\ud83d"'
ROWS = {
    "half an emoji": (f'{{"prompt": {HALF}, "completion": "a"}}', "prompt has half a character"),
    "in a message": (
        f'{{"prompt": [{{"role": "user", "content": {HALF}}}], "completion": "a"}}',
        "has half a character",
    ),
    "brackets": ('{"prompt": ' + "[" * 200_000 + "]" * 200_000 + ', "completion": "a"}', "bracket|deep"),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_no_code_foresaw_is_named_by_its_line(config, tiny, tmp_path, kind, workers):
    row, said = ROWS[kind]
    changes = bad_row(tiny, tmp_path / "bad.jsonl", row) | {"dataloader_num_workers": workers}
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 34.*({said})"):
        run_in(config, "a", **changes)
    folder = Path(config.output_dir, "a")
    assert newest(folder / "checkpoints")[0].name == "step-4"
    assert finding(folder)["watch/failed"] == "data"


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(100000000) %}x{% endfor %}", "{{ 1 / 0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"],
    ids=["range", "zero", "recursion"],
)
def test_a_template_that_raises_anything_is_a_row_that_is_refused(config, tmp_path, template):
    (tmp_path / "bad.jinja").write_text(template)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    changes = {"dataset": str(tmp_path / "rows.jsonl"), "chat_template_path": str(tmp_path / "bad.jinja")}
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the chat template refuses the conversation: "):
        run_in(config, "a", **QUICK | changes)


def test_tools_in_a_text_of_many_brackets_are_refused_by_line(config, tmp_path):
    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "tools": "[" * 100_000,
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: column tools: not JSON that can be read"):
        run_in(config, "a", **QUICK | {"dataset": str(tmp_path / "rows.jsonl")})


def test_a_worker_that_is_killed_is_named_and_the_last_step_is_saved(config, sft_with):
    source = (
        "import os\n@hookimpl\ndef ft_prepare(row, tokenizer, config):\n"
        "    if 'what is 33 ' in row['prompt'] and config.dataloader_num_workers: os.kill(os.getpid(), 9)\n"
        "    return ft_sft.method.ft_prepare(row, tokenizer, config)\n"
    )
    kind = sft_with(source.replace("and config.data", "and os.getppid() == int(os.environ['TRAINER']) and config.data"))
    os.environ["TRAINER"] = str(os.getpid())
    fields = (
        dataclasses.asdict(config)
        | QUICK
        | {
            "train_sampling_strategy": "sequential",
            "data_window": 8,
            "dataloader_num_workers": 1,
            "output_dir": config.output_dir + "/a",
        }
    )
    with pytest.raises(FtHostError, match="prepares rows was killed by SIGKILL, out of memory perhaps.*dataloader"):
        ft_host.train(kind(**fields))
    folder = Path(config.output_dir, "a")
    assert newest(folder / "checkpoints")[0].name == f"step-{lines(folder)[-1]['step']}"
    assert finding(folder)["watch/failed"] == "process"


@pytest.mark.parametrize("changes", [{"max_steps": 3}, {"num_train_epochs": 2.0, "max_steps": -1}], ids=str)
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_no_row_left_is_an_error(config, sft_with, changes, packing):
    kind = sft_with("@hookimpl\ndef ft_prepare(row, tokenizer, config):\n    return Drop('unwanted')\n")
    fields = dataclasses.asdict(config) | QUICK | {"max_dropped_share": 1.0, "packing": packing} | changes
    with pytest.raises(DataError, match="no row is left to train on.*unwanted"):
        ft_host.train(kind(**fields | {"output_dir": config.output_dir + "/a"}))


# ---------------------------------------------------------------- disks


def wrapped(error: BaseException, text: str) -> BaseException:
    made = RuntimeError(text)
    made.__context__ = error
    return made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), "quota"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "read-only"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "permission is denied"),
        (OSError(errno.EIO, "Input/output error", "x"), "input/output error"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (wrapped(OSError(errno.ENOSPC, "no"), "[enforce fail at inline_container.cc:672] . unexpected pos"), "is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), "MB are free"),
    ],
    ids=str,
)
def test_a_disk_is_recognised_in_any_error(tmp_path, error, said):
    assert said in str(disk_problem([error], tmp_path))
    assert not list(tmp_path.iterdir()), "what was written to find the reason is left"


def test_what_is_no_fault_of_a_disk_is_not_called_one(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.jsonl")
    assert disk_problem([missing], tmp_path) is None
    assert disk_problem([KeyError("x")], tmp_path / "gone") is None


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def replaced(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


@pytest.mark.parametrize("change", [removed, renamed, replaced])
def test_a_folder_that_goes_away_is_said_in_words(config, monkeypatch, change):
    append, folder = RunFolder.append, Path(config.output_dir, "a")

    def appended(self, name, entry):
        if name == "metrics.jsonl" and entry["step"] == 3:
            change(folder)
        append(self, name, entry)

    monkeypatch.setattr(RunFolder, "append", appended)
    with pytest.raises(FtHostError, match="(?s)the run's folder is gone.*run.json could not be updated"):
        run_in(config, "a", **QUICK)
    if change is not replaced:
        assert not folder.exists(), "a folder that somebody removed is made again"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_logging_keeps_the_state_if_it_can(config, monkeypatch, number):
    append = RunFolder.append

    def appended(self, name, entry):
        if name == "metrics.jsonl" and entry["step"] == 3:
            raise OSError(number, os.strerror(number), str(self.path / name))
        append(self, name, entry)

    monkeypatch.setattr(RunFolder, "append", appended)
    with pytest.raises(FtHostError, match="step-3 is intact"):
        run_in(config, "a", **QUICK)
    folder = Path(config.output_dir, "a")
    assert record(folder)["status"] == "failed"
    assert finding(folder)["watch/failed"] == "disk"
    assert finding(folder)["watch/failed_place"] == str(folder / "metrics.jsonl")


@pytest.mark.parametrize("name", ["save_whole", "write_json"])
def test_a_checkpoint_that_fails_half_way_leaves_nothing(config, monkeypatch, name, capsys):
    real, calls = getattr(checkpoint, name), []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) > {"save_whole": 1, "write_json": 4}[name]:
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        return real(*args, **kwargs)

    monkeypatch.setattr(checkpoint, name, full)
    with pytest.raises(FtHostError, match="checkpoint at step 4 could not be written: the disk is full"):
        run_in(config, "a", **QUICK | {"save_steps": 2})
    folder = Path(config.output_dir, "a")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert "step-2 is intact" in record(folder)["error"] and record(folder)["status"] == "failed"


def test_without_a_checkpoint_none_is_said_to_be_intact(config, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    monkeypatch.setattr(checkpoint, "save_whole", full)
    with pytest.raises(FtHostError, match="No checkpoint was written") as raised:
        run_in(config, "a", **QUICK)
    assert "intact" not in str(raised.value)


# ---------------------------------------------------------------- signals


def test_a_second_ctrl_c_while_saving_ends_at_once_as_interrupted(config, monkeypatch):
    real = checkpoint.dcp.save

    def slow(*args, **kwargs):
        if Path(config.output_dir, "a/checkpoints/step-2").is_dir():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            raise RuntimeError("a library made another error of it")
        real(*args, **kwargs)

    monkeypatch.setattr(checkpoint.dcp, "save", slow)
    append = RunFolder.append

    def appended(self, name, entry):
        append(self, name, entry)
        if name == "metrics.jsonl" and entry["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "append", appended)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Interrupted, match="step-2 is intact"):
        run_in(config, "a", **QUICK | {"save_steps": 2})
    folder = Path(config.output_dir, "a")
    assert record(folder)["status"] == "interrupted"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("place", ["load_policy", "open_store"])
@pytest.mark.usefixtures("without_nohup")
def test_a_signal_before_the_first_step_ends_the_run_as_interrupted(config, monkeypatch, name, place):
    from ft_host.training import build

    def asked(*args, **kwargs):
        signal.raise_signal(signal.Signals[name])
        raise AssertionError("the signal was not heeded")

    monkeypatch.setattr(build, "load_policy" if place == "load_policy" else "evaluation_of", asked)
    if place != "load_policy":
        monkeypatch.setattr(launch, "evaluation_of", asked)
    with pytest.raises(Interrupted):
        run_in(config, "a", **QUICK)
    assert record(Path(config.output_dir, "a"))["status"] == "interrupted"


def test_a_signal_is_heeded_while_rows_are_prepared(config, monkeypatch):
    from ft_host.data.stream import TrainStream

    get = TrainStream.__next__

    def slow(self):
        step = get(self)
        if step.rows_consumed == 24:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("rows are prepared for ever")
        return step

    monkeypatch.setattr(TrainStream, "__next__", slow)
    with pytest.raises(Interrupted, match="stopped at step 2 as asked"):
        run_in(config, "a", **QUICK)
    folder = Path(config.output_dir, "a")
    assert record(folder)["status"] == "interrupted" and newest(folder / "checkpoints")[0].name == "step-2"


def test_signals_that_were_ignored_and_caught_stay_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with caught() as outer, caught() as inner:
            assert inner is outer and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(Stop):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)  # within the same moment: the same
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_on_another_thread_leaves_signals_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def within():
        with caught() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.asked))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert found == [(before, False)]
    with caught():
        assert signal.getsignal(signal.SIGTERM) != before, "what another thread did keeps the main one from its signals"


def test_a_noted_signal_ends_what_may_be_broken_off():
    stop = Signals()
    stop.asked = stop.waits = True
    with pytest.raises(Stop), stop.at_once():
        raise AssertionError("it began all the same")
    assert stop.waits
