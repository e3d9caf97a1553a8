"""ft-host patch: the run file that mends what a run has found."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ft_host.cli import main
from ft_host.config.files import read_file
from ft_host.diagnostics.patch import chosen_finding, chosen_remedy, commented, patched
from ft_host.errors import UsageError
from ft_host.report import read_run
from ft_host.testing.runs import ORIGINS, make_run


def remedy(rank: int = 1, from_start: bool = False, **patch) -> dict:
    changes = [{"op": "replace", "path": f"/{name}", "from": old, "value": new} for name, (old, new) in patch.items()]
    return {
        "rank": rank,
        "why": f"Remedy {rank}",
        "applicability": "unsafe" if patch else "display",
        "patch": changes,
        "from_start": from_start,
        "expected": "",
    }


def finding(*remedies: dict, **fields) -> dict:
    return {
        "schema": "ft-host.finding/1",
        "code": "OPT003",
        "title": "Spike",
        "severity": "warning",
        "stage": "train",
        "state": "open",
        "message": "The loss is 4: above its mean.",
        "why": "y",
        "evidence": [],
        "remedies": list(remedies),
        "cause": None,
        "step": 60,
        "first_step": 35,
        "last_step": 60,
        "count": 4,
        "window": 9,
        "share": 0.5,
        "muted_by": None,
        "plugin": "ft-host 0.4.0",
        "fingerprint": "OPT003",
        "page": "docs/rules/OPT003.md",
    } | fields


RATE = {"learning_rate": (1e-3, 5e-4)}


def recorded(folder: Path, *findings: dict) -> Path:
    (folder / "findings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in findings))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    folder = make_run(tmp_path / "run", steps=60)
    for step in (10, 20, 30, 40):
        (folder / "checkpoints" / f"step-{step}").mkdir()
    return recorded(folder, finding(remedy(**RATE), remedy(2, warmup_steps=(20, 0.1), from_start=True), remedy(3)))


def called(*argv: str, capsys) -> tuple[int, str, str]:
    code = main(["patch", *argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_run_file_is_the_run_s_own_but_for_the_remedy(run, capsys):
    code, out, err = called(str(run), "OPT003", capsys=capsys)
    assert (code, err) == (0, "")
    given = yaml.safe_load(out)
    config = json.loads((run / "run.json").read_text())["config"]
    assert given.pop("method") == "sft" and given.pop("parent_run") == str(run)
    assert given.pop("learning_rate") == 5e-4
    kept = set(ORIGINS) - {"output_dir", "learning_rate"}
    assert kept <= given.keys() and "output_dir" not in given
    assert all(given[name] == config[name] for name in given)
    comments = " ".join(line.lstrip("# ") for line in out.splitlines() if line.startswith("#"))
    assert (
        "OPT003: The loss is 4: above its mean." in comments and "Remedy 1 (learning_rate: 0.001 -> 0.0005)" in comments
    )
    assert "learning_rate: 0.0005  # was 0.001" in out


def test_another_remedy_by_its_number(run, capsys):
    given = yaml.safe_load(called(str(run), "OPT003", "--remedy", "2", capsys=capsys)[1])
    assert given["warmup_steps"] == 0.1 and given["learning_rate"] == 1e-3


def test_from_a_checkpoint_before_the_finding(run, capsys):
    given = yaml.safe_load(called(str(run), "OPT003", "--from-checkpoint", capsys=capsys)[1])
    assert given["resume_from_checkpoint"] == str(run / "checkpoints" / "step-30")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("OPT003", "--remedy", "3"), "remedy 3 of OPT003 doesn't change the config; by hand:\n  Remedy 3"),
        (("OPT003", "--remedy", "4"), "OPT003 has 3 remedies, there is no 4"),
        (("OPT003", "--remedy", "2", "--from-checkpoint"), "this remedy must apply from the start"),
        (("OPT008",), "the run has no finding OPT008"),
        (("OPT00",), "the run has no finding OPT00; did you mean OPT003?"),
    ],
)
def test_refusals(run, capsys, argv, says):
    code, out, err = called(str(run), *argv, capsys=capsys)
    assert (code, out) == (2, "") and says in err


def test_no_checkpoint_early_enough_is_refused(tmp_path):
    record = read_run(make_run(tmp_path / "run", steps=60))
    with pytest.raises(UsageError, match="no checkpoint from before step 35, where OPT003 began"):
        patched(record, finding(), remedy(**RATE), from_checkpoint=True)


def test_the_first_remedy_that_changes_the_config_is_taken():
    found = finding(remedy(1), remedy(2, **RATE))
    assert chosen_remedy(found, None)["rank"] == 2
    with pytest.raises(UsageError, match="by hand:\n  Remedy 1\n  Remedy 2$"):
        chosen_remedy(finding(remedy(1), remedy(2)), None)
    with pytest.raises(UsageError, match="by hand: nothing is known"):
        chosen_remedy(finding(), None)


def test_one_of_several_causes_has_to_be_named():
    several = [finding(fingerprint=f"OPT003:{cause}", cause=cause) for cause in ("a", "b")]
    with pytest.raises(UsageError, match="OPT003:a, OPT003:b; name one"):
        chosen_finding(several, "OPT003")
    assert chosen_finding(several, "OPT003:b")["cause"] == "b"
    several[0]["state"] = "cleared"
    assert chosen_finding(several, "OPT003")["cause"] == "b"


def test_values_that_yaml_could_misread_come_back_as_they_were(tmp_path):
    odd = {
        "model": "null",
        "dataset": "a: b # c",
        "learning_rate": 1e-05,
        "eval_reward": ["x.py:f", "no"],
        "lr_scheduler_kwargs": {"min": 1e-7},
        "run_name": "",
        "seed": 7,
    }
    record = read_run(make_run(tmp_path / "run", steps=20, config=odd))
    message = "a # b\n method: dpo"
    found = finding(remedy(**{"run_name": ("", "x: y # z")}), message=message)
    values = patched(record, found, found["remedies"][0])
    (tmp_path / "next.yaml").write_text(commented(record, found, found["remedies"][0], values))
    file = read_file(str(tmp_path / "next.yaml"))
    given = file.values
    assert given["run_name"] == "x: y # z" and file.method == "sft"
    assert {name: given[name] for name in odd if name != "run_name"} == {
        k: v for k, v in odd.items() if k != "run_name"
    }


def test_a_method_in_a_file_is_named_by_its_file(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"method": "mine", "reference": "/some/mine.py"}))
    record = read_run(run)
    found = finding(remedy(**RATE))
    text = commented(record, found, found["remedies"][0], patched(record, found, found["remedies"][0]))
    assert yaml.safe_load(text)["method"] == "/some/mine.py"


def test_the_file_trains_and_the_run_knows_its_parent(config, tmp_path):
    """A run that was started in Python: what it was given is what differs from the defaults."""
    from ft_host.errors import FtHostError
    from ft_host.training import launch

    bad = dataclasses.replace(
        config, learning_rate=1e15, optim="sgd", max_grad_norm=0.0, output_dir=str(tmp_path / "bad")
    )
    with pytest.raises(FtHostError, match="is nan"):
        launch.train(bad)
    command = [sys.executable, "-m", "ft_host"]
    made = subprocess.run(
        [*command, "patch", str(tmp_path / "bad"), "NUM001"], capture_output=True, text=True, check=True
    )
    (tmp_path / "next.yaml").write_text(made.stdout)
    given = yaml.safe_load(made.stdout)
    assert given["learning_rate"] == 2e14 and given["optim"] == "sgd" and given["max_steps"] == 5
    done = subprocess.run(
        [*command, "train", "next.yaml", "--learning-rate", "0.01", "--output-dir", "good"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = read_run(tmp_path / "good")
    assert (record.parent, record.status, record.steps) == (str(tmp_path / "bad"), "finished", 5)
    (ancestor,) = record.facts["plan/ancestors"]  # what was tried, for the findings of this run
    assert ancestor["changed"]["learning_rate"] == [1e15, 0.01] and ancestor["found"] == ["NUM001"]
    assert "Continues from" in (tmp_path / "good" / "report.html").read_text()
