"""The autopilot: what it changes, what it never changes, where it goes on, and what it says it did."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ft_host.autopilot.attempts import Attempt, Autopilot, Change, is_good
from ft_host.report import read_run
from ft_host.testing.runs import make_run

CONFIG = {"learning_rate": 0.01, "beta": 0.1, "dataset": "rows.jsonl", "max_steps": 100, "model": "m"}


def finding(code: str = "OPT003", patch=(("learning_rate", 0.002),), **fields) -> dict:
    remedies = [
        {
            "rank": 1,
            "why": "Lower it",
            "applicability": "unsafe",
            "from_start": False,
            "expected": "",
            "patch": [{"op": "replace", "path": f"/{name}", "from": None, "value": value} for name, value in patch],
        }
    ]
    return {
        "code": code,
        "fingerprint": code,
        "state": "open",
        "severity": "warning",
        "first_step": 40,
        "message": "up",
        "remedies": remedies,
    } | fields


def flight(tmp_path: Path, *findings: dict, locked: tuple[str, ...] = (), values=None, change=None) -> Autopilot:
    made = Autopilot(folder=tmp_path, method="sft", config=CONFIG, budget=4, locked=list(locked))
    values = {"learning_rate": 0.01} if values is None else values
    made.attempts.append(
        Attempt(number=1, folder=str(tmp_path / "attempt-1"), values=values, change=change, findings=list(findings))
    )
    return made


def chosen(made: Autopilot):
    return made.choose(made.attempts[-1])


# ---------------------------------------------------------------- what is changed


def test_the_first_remedy_that_is_a_change_of_the_config_is_taken(tmp_path):
    values, change = chosen(flight(tmp_path, finding()))
    assert values == {"learning_rate": 0.002}
    assert change.patch == {"learning_rate": [0.01, 0.002]} and change.finding == "OPT003"
    assert change.checkpoint is None  # there is none


def test_an_error_comes_before_a_warning_and_what_began_earlier_first(tmp_path):
    late = finding("OPT008", (("learning_rate", 0.005),), first_step=60)
    early = finding("OPT006", (("learning_rate", 0.004),), first_step=20)
    assert chosen(flight(tmp_path, late, early))[1].finding == "OPT006"
    assert chosen(flight(tmp_path, early, late | {"severity": "error"}))[1].finding == "OPT008"


@pytest.mark.parametrize(
    "found",
    [
        finding(severity="info"),
        finding(state="cleared"),
        finding(state="muted"),
        finding(patch=()),
        finding(patch=(("dataset", "other.jsonl"),)),
        finding(patch=(("learning_rate", 0.002), ("model", "n"))),
    ],
    ids=["info", "cleared", "muted", "no patch", "data", "model"],
)
def test_what_it_leaves_alone(tmp_path, found):
    assert chosen(flight(tmp_path, found)) is None


def test_a_locked_field_is_left_alone_and_the_next_remedy_taken(tmp_path):
    found = finding()
    found["remedies"].append(finding(patch=(("beta", 0.5),))["remedies"][0] | {"rank": 2})
    assert chosen(flight(tmp_path, found, locked=("learning_rate",)))[0] == {"learning_rate": 0.01, "beta": 0.5}


def test_nothing_is_tried_twice(tmp_path):
    made = flight(tmp_path, finding(patch=(("beta", 0.5),)), values={"beta": 0.1})
    made.attempts.append(
        Attempt(
            number=2,
            folder=str(tmp_path / "attempt-2"),
            values={"beta": 0.5},
            change=None,
            findings=[finding(patch=(("beta", 0.5),)), finding("X001", (("beta", 0.1),))],
        )
    )
    assert chosen(made) is None


def test_what_did_not_help_is_taken_further_each_time(tmp_path):
    before = Change(finding="OPT003", message="", remedy="", patch={"learning_rate": [0.05, 0.01]}, checkpoint=None)
    made = flight(tmp_path, finding(), change=before)
    assert chosen(made)[0] == {"learning_rate": 0.0004}  # divided by 5, then by 25
    other = flight(tmp_path, finding("DPO001"), change=before)
    assert chosen(other)[0] == {"learning_rate": 0.002}


# ---------------------------------------------------------------- where it goes on


def losses(folder: Path, values: list[float]) -> None:
    rows = [{"kind": "train", "step": step, "loss": value} for step, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_checkpoint_is_good_where_what_followed_it_was(tmp_path):
    folder = make_run(tmp_path / "attempt-1", steps=60, eval_steps=None)
    losses(folder, [3.0] * 10 + [2.0] * 20 + [9.0] * 30)
    record = read_run(folder)
    assert is_good(record, 20) and is_good(record, 25)
    assert not is_good(record, 30)  # its weights gave the 9.0 of step 31
    assert not is_good(record, 60)  # nothing is known of what it gives


def test_it_goes_on_from_the_newest_good_checkpoint_before_the_trouble(tmp_path):
    folder = make_run(tmp_path / "attempt-1", steps=60, eval_steps=None)
    losses(folder, [3.0] * 10 + [2.0] * 20 + [9.0] * 30)
    for step in (10, 20, 30, 40):
        (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    found = finding(first_step=38)
    assert chosen(flight(tmp_path, found))[1].checkpoint == str(folder / "checkpoints" / "step-20")
    assert chosen(flight(tmp_path, found | {"first_step": 15}))[1].checkpoint == str(folder / "checkpoints" / "step-10")
    found["remedies"][0]["from_start"] = True
    assert chosen(flight(tmp_path, found))[1].checkpoint is None


def test_the_best_is_by_the_held_out_metric(tmp_path):
    made = flight(tmp_path)
    made.attempts = [
        Attempt(number=n, folder="", values={}, change=None, status=status, metrics={"eval_reward": reward})
        for n, (status, reward) in enumerate([("finished", 0.4), ("finished", 0.7), ("failed", 0.9)], 1)
    ]
    made.judge()
    assert (made.best, made.metric) == (2, "eval_reward")


# ---------------------------------------------------------------- the whole of it


def autopilot(config, folder: Path, budget: int, *flags: str, **changes) -> subprocess.CompletedProcess:
    default = type(config)()
    fields = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    fields = {name: value for name, value in fields.items() if value != getattr(default, name)} | changes
    del fields["output_dir"]
    file = folder.parent / "run.json"
    file.write_text(json.dumps(fields))
    command = [sys.executable, "-m", "ft_host", "autopilot", "sft", str(file), "--budget", str(budget)]
    return subprocess.run(
        [*command, "--output", str(folder), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_rate_that_breaks_the_weights_is_mended_and_the_lineage_told(config, tmp_path):
    """Such a rate without clipping overflows within a few steps."""
    out = tmp_path / "flight"
    done = autopilot(
        config, out, 2, learning_rate=1e15, max_grad_norm=0.0, optim="sgd", warmup_steps=2, max_steps=8, save_steps=1
    )
    told = json.loads((out / "autopilot.json").read_text())
    first, second = told["attempts"][:2]
    assert first["status"] == "failed" and "NUM001" in {each["code"] for each in first["findings"]}, done.stderr
    assert second["change"]["finding"] == "NUM001" and second["change"]["patch"]["learning_rate"] == [1e15, 2e14]
    assert json.loads((out / "attempt-2" / "run.json").read_text())["parent"] == str(out / "attempt-1")
    assert len(told["attempts"]) == 2
    page = (out / "report.html").read_text()
    assert "What was tried" in page and "NUM001" in page and "learning_rate" in page


def test_a_healthy_run_is_one_attempt(config, tmp_path):
    out = tmp_path / "flight"
    done = autopilot(config, out, 3)
    told = json.loads((out / "autopilot.json").read_text())
    assert done.returncode == 0, done.stderr
    assert len(told["attempts"]) == 1 and told["best"] == 1 and told["metric"] == "eval_loss"
    assert "best: attempt 1" in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "--budget: expected the maximum number of attempts"),
        (("--budget", "0"), "expected a number of attempts"),
        (("--budget", "2", "--lock", "learning_rat"), "learning_rate"),
    ],
)
def test_refusals(config, tmp_path, flags, says, monkeypatch):
    from ft_host.cli import main

    file = tmp_path / "run.yaml"
    file.write_text(f"method: sft\nmodel: {config.model}\ndataset: {config.dataset}\n")
    monkeypatch.chdir(tmp_path)
    errors = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: errors.append(" ".join(map(str, text))))
    assert main(["autopilot", str(file), *flags]) == 2
    assert says in "\n".join(errors)
