"""Checkpoints: which are whole, which are kept, and what a run begins with where none is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ft_host.errors import UsageError
from ft_host.rundir import checkpoints
from ft_host.rundir.checkpoints import Kept, damage, index_of, newest, steps_in
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.opening import Resuming
from ft_host.testing.invariants import assert_same, assert_same_weights, beside, lines, run_in
from ft_host.training.launch import train

FILES = ("progress.json", "rng-0.json", "state/0.distcp", "model/model.safetensors")


def write(folder: Path, step: int, content: str = "x") -> Path:
    """A checkpoint with every kind of file that one has."""
    place = folder / f"step-{step}"
    for name in FILES:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"{content}{step}{name}")
    seal(place)
    return place


def seal(place: Path) -> None:
    index = index_of({name: checkpoints.checksum(place / name) for name in FILES})
    (place / "files.json").write_text(json.dumps(index))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def said(folder: Path) -> list[str]:
    return [event["text"] for event in RunFolder(folder).read("events.jsonl")]


def resume(config, folder: Path, **asked) -> None:
    train(config, resume=folder, asked=Resuming(**asked))


# ---------------------------------------------------------------- files.json


def _edit(change):
    def edited(place: Path) -> None:
        index = json.loads((place / "files.json").read_text())
        (place / "files.json").write_text(json.dumps(change(index)))

    return edited


def _without(name):
    return lambda index: index | {"files": {key: value for key, value in index["files"].items() if key != name}}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda place: (place / "files.json").unlink(), "files.json is missing"),
        (lambda place: (place / "files.json").write_text(""), "files.json can't be read"),
        (lambda place: (place / "files.json").write_bytes(b"\xff\x00"), "files.json can't be read"),
        (lambda place: (place / "files.json").write_text("[" * 100_000), "files.json can't be read"),
        (_edit(lambda index: {}), "files.json doesn't list progress.json, rng-0.json, state/"),
        (_edit(lambda index: []), "files.json isn't a list of files"),
        (_edit(lambda index: None), "files.json isn't a list of files"),
        (_edit(lambda index: index | {"files": {}}), "files.json doesn't match its own count and checksum"),
        (_edit(lambda index: index | {"files": []}), "files.json isn't a list of files"),
        (_edit(_without("model/model.safetensors")), "files.json doesn't match its own count and checksum"),
        (_edit(lambda index: {"files": index["files"]}), "files.json doesn't match its own count and checksum"),
        (_edit(lambda index: _without("rng-0.json")(index)["files"]), "files.json doesn't list rng-0.json"),
        (
            _edit(lambda index: _without("model/model.safetensors")(index)["files"]),
            "files.json doesn't list model/model.safetensors",
        ),
        (_edit(lambda index: index["files"] | {"rng-0.json": [1]}), "files.json isn't a list of files"),
        (_edit(lambda index: index["files"] | {"rng-0.json": "1"}), "files.json isn't a list of files"),
        (lambda place: (place / "rng-0.json").unlink(), "rng-0.json is missing"),
        (lambda place: shutil.rmtree(place / "state"), "state/0.distcp is missing"),
        (lambda place: (place / "progress.json").write_text("{}"), "progress.json has 2 bytes, expected"),
        (lambda place: (place / "state/1.distcp").write_text("new"), "files.json doesn't list state/1.distcp"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path, spoil, problem):
    place = write(tmp_path, 3)
    assert damage(place) is None
    spoil(place)
    assert damage(place).startswith(problem)


def test_an_index_of_an_earlier_version_and_things_laid_beside_are_no_damage(tmp_path):
    place = write(tmp_path, 3)
    _edit(lambda index: index["files"])(place)
    (place / ".DS_Store").write_text("a file manager was here")
    (place / "notes.txt").write_text("the best one")
    assert damage(place) is None


# ---------------------------------------------------------------- names


def foreign(folder: Path) -> list[str]:
    """Things that people put beside checkpoints. Gives their names."""
    for name in ("step-3-best", "step-abc", "step-3.bak", "step-", "step-007", "step-²", "step-1e3", "best"):
        write(folder / "there", 3).rename(folder / name)
    (folder / "there").rmdir()
    (folder / "step-12").write_text("a file")
    (folder / "step-99").mkdir()
    return names(folder)


def test_only_steps_are_checkpoints(tmp_path):
    left = foreign(tmp_path)
    write(tmp_path, 3)
    write(tmp_path, 10)
    assert [step for step, _ in steps_in(tmp_path)] == [3, 10, 99]
    found, sentences = newest(tmp_path)
    assert found.name == "step-10"
    assert sentences == ["checkpoint step-99 is damaged (files.json is missing); going on from step-10"]
    kept = Kept(tmp_path)
    kept.rotate(1)
    checkpoints.clean(tmp_path)
    assert names(tmp_path) == sorted([*left, "step-10"])


def test_a_run_trains_and_goes_on_beside_foreign_names(config):
    folder = Path(config.output_dir, "a")
    (folder / "checkpoints").mkdir(parents=True)
    left = foreign(folder / "checkpoints")
    run_in(config, "a")
    assert names(folder / "checkpoints") == sorted([*left, "step-4", "step-5"])
    resume(beside(config, "a", max_steps=7, save_steps=1), folder)
    assert names(folder / "checkpoints") == sorted([*left, "step-6", "step-7"])
    assert [line["step"] for line in lines(folder)] == list(range(1, 8))


def test_what_is_in_the_place_of_a_checkpoint_is_renamed_not_deleted(config):
    folder = Path(config.output_dir, "a")
    (folder / "checkpoints/step-4").mkdir(parents=True)
    (folder / "checkpoints/step-4/notes.txt").write_text("mine")
    (folder / "checkpoints/step-2").write_text("mine")
    run_in(config, "a")
    assert (folder / "checkpoints/step-4.not-a-checkpoint/notes.txt").read_text() == "mine"
    assert (folder / "checkpoints/step-2.not-a-checkpoint").read_text() == "mine"
    assert any("step-2 was no checkpoint; it is now called" in text for text in said(folder))


# ---------------------------------------------------------------- rotation


def test_a_checkpoint_that_is_kept_elsewhere_is_used_and_not_deleted(tmp_path):
    folder, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    for step in (2, 3):
        write(folder, step)
    (folder / "step-2").rename(elsewhere)
    (folder / "step-2").symlink_to(elsewhere)
    (folder / ".step-9.old").symlink_to(elsewhere)
    Kept(folder).rotate(1)
    checkpoints.clean(folder)
    assert names(folder) == [".step-9.old", "step-2", "step-3"] and damage(elsewhere) is None
    shutil.rmtree(folder / "step-3")
    assert newest(folder)[0].name == "step-2"
    write(tmp_path, 4).rename(folder / ".step-2.tmp")
    checkpoints.put(folder / ".step-2.tmp", folder / "step-2")
    assert not (folder / "step-2").is_symlink() and damage(elsewhere) is None


def test_damaged_checkpoints_are_not_counted_and_not_deleted(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    for step in (15, 18):
        (write(tmp_path, step) / "progress.json").write_text("")
    kept = Kept(tmp_path)
    kept.rotate(1)
    assert names(tmp_path) == ["step-15", "step-18", "step-3"]
    kept.trust(write(tmp_path, 4))
    kept.rotate(1)
    assert names(tmp_path) == ["step-15", "step-18", "step-4"]
    kept.rotate(None)
    assert names(tmp_path) == ["step-15", "step-18", "step-4"]


def test_what_is_known_to_be_whole_is_not_read_again(tmp_path, monkeypatch):
    kept, read, real = Kept(tmp_path), [], checkpoints.checksum
    write(tmp_path, 1)
    kept.trust(write(tmp_path, 2))
    monkeypatch.setattr(checkpoints, "checksum", lambda path: read.append(path) or real(path))
    assert [path.name for path in kept.whole()] == ["step-1", "step-2"]
    assert {path.parts[len(tmp_path.parts)] for path in read} == {"step-1"}  # of an earlier process: once
    read.clear()
    assert len(kept.whole()) == 2 and not read
    (tmp_path / "step-2/progress.json").write_text("cut")
    assert [path.name for path in kept.whole()] == ["step-1"] and not read


@pytest.mark.parametrize("at", range(1, 6))
def test_a_failure_in_the_middle_of_a_rotation_leaves_a_whole_checkpoint(tmp_path, monkeypatch, at):
    """Killed before each rename and deletion, of replacing the only checkpoint and of rotating."""
    write(tmp_path, 4)
    write(tmp_path / "new", 4, "newer").rename(tmp_path / ".step-4.tmp")
    (tmp_path / "new").rmdir()
    calls = []

    def counted(real):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    kept = Kept(tmp_path)
    try:
        checkpoints.put(tmp_path / ".step-4.tmp", tmp_path / "step-4")
        kept.rotate(1)
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    checkpoints.clean(tmp_path)
    assert names(tmp_path) == ["step-4"] and newest(tmp_path)[0] is not None


def test_what_killed_saves_left_is_removed(config):
    folder = run_in(config, "a", max_steps=2)
    for name in (".step-1.tmp", ".step-40.tmp", ".step-41.old"):
        shutil.copytree(folder / "checkpoints/step-2/state", folder / "checkpoints" / name)
    (folder / "checkpoints/.step-mine").mkdir()
    resume(beside(config, "a", max_steps=3, save_steps=0), folder)
    assert names(folder / "checkpoints") == [".step-mine", "step-2", "step-3"]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_new_checkpoint_is_never_deleted_for_a_damaged_one(config, limit):
    """Stopped again before it passes the damaged ones, the resumed run has lost nothing."""
    whole = run_in(config, "whole", max_steps=6, save_steps=1, save_total_limit=limit)
    folder = run_in(config, "a", max_steps=6, save_steps=1, save_total_limit=100)
    for step in (3, 5, 6):
        (folder / f"checkpoints/step-{step}/state/.metadata").unlink()
    longer = beside(config, "a", max_steps=6, save_steps=1, save_total_limit=limit)
    resume(longer, folder)
    left = [path.name for path in Kept(folder / "checkpoints").whole()]
    assert left == ["step-5", "step-6"][-limit:]
    assert "step-3" in names(folder / "checkpoints")
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same_weights(whole, folder, rel=0)


# ---------------------------------------------------------------- none whole


def test_with_no_whole_checkpoint_a_run_is_refused_and_restarted_on_request(config):
    whole = run_in(config, "whole", max_steps=4)
    folder = run_in(config, "a", max_steps=4)
    before = (folder / "metrics.jsonl").read_bytes()
    for step in (2, 4):
        (folder / f"checkpoints/step-{step}/files.json").write_text("{}")
    again = beside(config, "a", max_steps=4)
    with pytest.raises(UsageError, match=r"no checkpoint of it is whole: checkpoint step-4.*step-2.*--restart"):
        resume(again, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before
    resume(again, folder, restart=True)
    assert (folder / "before-restart-1/metrics.jsonl").read_bytes() == before
    assert names(folder / "before-restart-1/checkpoints") == ["step-2", "step-4"]
    assert any("what there was is in" in text and "before-restart-1" in text for text in said(folder))
    assert_same(lines(whole), lines(folder), rel=0)
    assert_same_weights(whole, folder, rel=0)


def test_removed_checkpoints_are_no_reason_to_begin_at_0(config):
    folder = run_in(config, "a", max_steps=4)
    for make_empty in (False, True):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if make_empty:
            (folder / "checkpoints/step-3.bak").mkdir(parents=True)
        with pytest.raises(UsageError, match=r"a checkpoint was written at step 4 and there is none.*--restart"):
            resume(beside(config, "a", max_steps=4), folder)
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]


def test_a_run_that_was_stopped_before_its_first_checkpoint_keeps_its_logs(config):
    whole = run_in(config, "whole", max_steps=3)
    folder = run_in(config, "a", max_steps=3)
    shutil.rmtree(folder / "checkpoints")
    manifest = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(manifest | {"saved": None}))
    resume(beside(config, "a", max_steps=3), folder)
    assert lines(folder / "before-restart-1") == lines(whole) == lines(folder)


def test_lost_metrics_are_told(config):
    folder = run_in(config, "a", max_steps=4)
    (folder / "metrics.jsonl").unlink()
    resume(beside(config, "a", max_steps=5), folder)
    assert any("metrics.jsonl lacks 4 of the 4 steps before" in text for text in said(folder))
