"""A run that an older release of the same promise began, and that was killed, goes on with this one to the numbers of
its own uninterrupted run. `checkpoints/make.py` writes such runs, once for each release."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest

from ft_host.cli import main
from ft_host.testing import lines

WRITTEN = Path(__file__).parent / "checkpoints"
RUNS = sorted(path.parent for path in WRITTEN.glob("ft-host-*/*/run.json"))
REL, ABS = 2e-5, 1e-6  # of float32, on another processor and with another torch


def module():
    spec = importlib.util.spec_from_file_location("make_checkpoints", WRITTEN / "make.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_last_release_has_left_its_runs():
    releases = {path.name.removeprefix("ft-host-") for path in WRITTEN.glob("ft-host-*")}
    assert "0.9.0" in releases
    for release in releases:
        assert {run.name for run in RUNS if run.parent.name == f"ft-host-{release}"} == set(module().RUNS), release


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_it_goes_on_to_the_numbers_of_its_own_uninterrupted_run(run, tmp_path, monkeypatch):
    shutil.copytree(run.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = [line["step"] for line in lines(run.name)]
    assert before == [1, 2, 3] and not (tmp_path / run.name / "model").exists(), "it was killed after its third step"

    assert main(["train", "--resume", run.name]) == 0

    expected = [json.loads(line) for line in (run.parent / f"{run.name}.jsonl").read_text().splitlines()]
    found = lines(run.name)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(expected, found, strict=True):
        for name, value in line.items():
            if isinstance(value, float):
                near = math.isclose(value, other[name], rel_tol=REL, abs_tol=ABS)
                assert near, f"step {line['step']}: {name} is {other[name]}, and was {value}"
            else:
                assert value == other[name], (line["step"], name)
    record = json.loads((tmp_path / run.name / "run.json").read_text())
    assert record["status"] == "finished" and any("step-2" in event["text"] for event in events(tmp_path / run.name))


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
