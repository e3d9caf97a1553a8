"""Fingerprints: of what is on disk by content, of the hub by commit, of rows by what they say."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ft_host.data import content, content_of, open_source
from ft_host.data.load import open_train
from ft_host.rundir import fingerprint
from ft_host.rundir.depends import changes
from ft_host.rundir.fingerprint import differences, of_function, of_model, of_path

# ---------------------------------------------------------------- weights and files


@pytest.fixture
def weights(tmp_path):
    """A folder with 40 tensors in a safetensors file."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({f"t{n}": torch.arange(400.0) + n for n in range(40)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "transformers_version": "5"}))
    return folder


@pytest.mark.parametrize("sampled", [False, True], ids=["whole", "sampled"])
@pytest.mark.parametrize("tensor", ["t0", "t17", "t39"])
def test_a_tensor_that_changed_is_seen_in_small_and_large_files(weights, monkeypatch, sampled, tensor):
    if sampled:
        monkeypatch.setattr(fingerprint, "WHOLE", 0)
        monkeypatch.setattr(fingerprint, "BLOCK", 64)
        monkeypatch.setattr(fingerprint, "BLOCKS", 100)
    before = of_path(weights)
    file = weights / "model.safetensors"
    times = file.stat()
    tensors = load_file(file)
    save_file(tensors | {tensor: tensors[tensor] + 1}, file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (said,) = differences(before, of_path(weights))
    assert said.startswith("model.safetensors (") and "bytes, digest" in said


def test_a_large_file_is_read_in_parts(weights, monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCK", 64)
    file = weights / "model.safetensors"
    parts = fingerprint._blocks(file, file.stat().st_size)
    assert len(parts) == 1 + 3 * 40 and sum(length for _, length in parts) < file.stat().st_size / 4
    other = weights / "pytorch_model.bin"
    shutil.copy(file, other)
    monkeypatch.setattr(fingerprint, "BLOCKS", 10)
    parts = fingerprint._blocks(other, other.stat().st_size)
    assert len(parts) == 10 and parts[0][0] == 0 and sum(parts[-1]) == other.stat().st_size


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_safetensors_has_a_fingerprint_too(tmp_path, content, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", -1)
    (tmp_path / "model.safetensors").write_bytes(content)
    assert of_path(tmp_path) == of_path(tmp_path)


def test_what_is_no_part_of_a_model_does_not_count(weights):
    before = of_path(weights)
    for name in ("README.md", ".gitattributes", "training_args.bin", "trainer_state.json", "notes.log"):
        (weights / name).write_text("x")
    (weights / "config.json").write_text(json.dumps({"transformers_version": "6", "model_type": "x"}, indent=4))
    assert differences(before, of_path(weights)) == []
    for name in ("tokenizer.model", "merges.txt", "modeling_x.py", "templates/a.jinja"):
        (weights / name).parent.mkdir(exist_ok=True)
        (weights / name).write_text("x")
        assert differences(before, of_path(weights)) == [f"{name} is new"]
        (weights / name).unlink()


def test_any_other_folder_counts_whole(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c.anything").write_text("x")
    before = of_path(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert differences(before, of_path(tmp_path)) == []
    (tmp_path / "a/b/c.anything").write_text("y")
    assert differences(before, of_path(tmp_path))[0].startswith("a/b/c.anything (1 bytes")


def test_a_file_moved_is_the_same_and_a_folder_in_its_place_is_not(tmp_path):
    (tmp_path / "a.jinja").write_text("x")
    before = of_path(tmp_path / "a.jinja")
    (tmp_path / "a.jinja").rename(tmp_path / "b.jinja")
    assert differences(before, of_path(tmp_path / "b.jinja")) == []
    (tmp_path / "c").mkdir()
    assert differences(before, of_path(tmp_path / "c")) == ["it was a file and is a folder"]


# ---------------------------------------------------------------- hub and functions


def test_a_hub_model_is_known_by_its_commit(tmp_path, monkeypatch):
    cache = tmp_path / "models--org--name"
    for commit in ("a" * 40, "b" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    before = {"model": {"value": "org/name"} | of_model("org/name")}
    assert before["model"]["commit"] == "a" * 40
    (cache / "refs/main").write_text("b" * 40)
    now = {"model": {"value": "org/name"} | of_model("org/name")}
    (change,), _ = changes(before, now)
    assert change.what == f"org/name: commit {'a' * 40} then, {'b' * 40} now"
    assert changes(before, {"model": {"value": "org/name"} | of_model("org/name", "a" * 40)}) == ([], [])
    assert of_model("org/other") == of_model("/no/such/folder") == {"kind": "hub", "commit": None}


def test_functions_are_known_by_their_file_and_installed_ones_by_version(tmp_path, monkeypatch):
    package = tmp_path / "fake_package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "inner/score.py"):
        (package / name).write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in ("fake_package.inner.score:f", "fake_package:f", f"{package / 'inner/score.py'}:f"):
        before = of_function(spec)
        file = package / ("__init__.py" if spec.startswith("fake_package:") else "inner/score.py")
        file.write_text(file.read_text() + "#")
        assert differences(before, of_function(spec))[0].startswith("its content (")
    assert differences(of_function("fake_package:f"), of_function("fake_package:g")) == ["function f then, g now"]
    assert "fake_package" not in sys.modules
    installed = of_function("safetensors.torch:load_file")
    assert installed["kind"] == "installed" and installed["version"]
    older = {"optim": {"value": "x", **installed, "version": "0.0"}}
    assert changes(older, {"optim": {"value": "x", **installed}})[1] == [
        f"optim: safetensors was 0.0 when the run began, is {installed['version']} now"
    ]
    assert of_function("no_such_package.at.all:f") is None and of_function("no_file.py:f") is None


# ---------------------------------------------------------------- rows

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(60)]


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text("\n".join(",".join(values) for values in ([*rows[0]], *(row.values() for row in rows))) + "\n")
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "streamed"])
@pytest.mark.parametrize("small", [True, False], ids=["rows", "bytes"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_rows_of_any_format_are_told_apart(tmp_path, monkeypatch, suffix, small, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    if not small:
        monkeypatch.setattr(content, "SMALL", -1)

    def of(rows: list[dict], name: str = "a") -> dict:
        return content_of(open_source(str(write(tmp_path / f"{name}{suffix}", rows)), streaming=streaming))

    before = of(ROWS)
    assert before["of"] == ("rows" if small else "bytes")
    assert of(ROWS) == of(ROWS, "moved") == before
    edited = [*ROWS[:30], {"prompt": "other", "completion": "c"}, *ROWS[31:]]
    digests = {of(rows, f"x{n}")["ordered"] for n, rows in enumerate((ROWS, edited, ROWS[::-1], ROWS[1:]))}
    assert len(digests) == 4
    if small:
        assert of(ROWS[::-1])["unordered"] == before["unordered"]
        assert of([{"completion": row["completion"], "prompt": row["prompt"]} for row in ROWS], "y") == before


@pytest.mark.parametrize("small", [True, False], ids=["rows", "bytes"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path, monkeypatch, small):
    monkeypatch.setattr(content, "SMALL", 1 << 20 if small else -1)
    path = write(tmp_path / "a.jsonl", ROWS)
    before = content_of(open_source(str(path)))
    path.write_text(path.read_text() + "\n  \n\n")
    assert content_of(open_source(str(path))) == before


def test_blocks_of_a_very_large_stream_are_read(tmp_path, monkeypatch):
    for name, value in (("SMALL", -1), ("LARGE", 0), ("BLOCK", 16), ("BLOCKS", 50)):
        monkeypatch.setattr(content, name, value)
    path = write(tmp_path / "a.jsonl", ROWS)
    before = content_of(open_source(str(path), streaming=True))
    assert content_of(open_source(str(path), streaming=True)) == before
    write(path, [{"prompt": "x", "completion": "y"}] * 60)
    assert content_of(open_source(str(path), streaming=True)) != before


def test_a_row_that_cannot_be_read_is_content_too(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    lines = path.read_text().splitlines()
    found = []
    for bad in ("{", "[]", lines[40]):
        path.write_text("\n".join([*lines[:40], bad, *lines[41:]]) + "\n")
        found.append(content_of(open_source(str(path)))["ordered"])
    assert len(set(found)) == 3


def test_mixtures_have_a_digest_for_each_source(tmp_path):
    from ft_sft.config import SFTConfig

    paths = [write(tmp_path / f"{name}.jsonl", ROWS) for name in "ab"]
    config = SFTConfig(model="m", dataset=[{"path": str(path)} for path in paths])
    found = content_of(open_train(config))
    assert found["of"] == "sources" and len(found["sources"]) == 2 and found["sources"][0] == found["sources"][1]
