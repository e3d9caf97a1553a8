"""Diagnostics in whole runs: what stops one, what fails one, what is left behind, and what goes on from a
checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import ft_host
from ft_host.diagnostics import Engine, Remedy, Rule, collect
from ft_host.errors import ConfigError, FtHostError, StoppedByFinding, UsageError
from ft_host.rundir.opening import Resuming
from ft_host.testing import command
from ft_host.testing.invariants import as_if_killed, assert_same, beside, lines, run_in
from ft_host.training.launch import train


def rule(**fields) -> Rule:
    """One that finds steps 3 and later bad, and would have the learning rate lowered."""
    given = {
        "code": "TEST001",
        "title": "late",
        "stage": "train",
        "needs": ("loss",),
        "test": lambda view: view.step >= 3,
        "message": lambda view: f"step {view.step} is late",
        "window": 2,
        "least": 1,
        "share": 0.5,
        "remedies": lambda view: [Remedy(why="Lower it", patch={"learning_rate": view.config.learning_rate / 2})],
        "when": "from step 3 on",
        "why": "time",
        "remedy": "none",
        "source": "a test",
    }
    return Rule(**given | fields)


@pytest.fixture
def only(monkeypatch):
    """`only(rule, ...)`: the rules of the runs to come."""

    def set_to(*rules: Rule) -> None:
        monkeypatch.setattr("ft_host.monitor.watch.all_rules", lambda plugins, infos: [(r, "test 0") for r in rules])

    return set_to


def findings(folder: Path) -> list[dict]:
    file = folder / "findings.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def manifest(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_finding_is_in_the_folder_and_in_what_train_returns(config, only):
    only(rule())
    done = ft_host.train(config)
    first, *_, last = findings(done.folder)
    assert (first["code"], first["state"], first["step"]) == ("TEST001", "open", 3)
    assert first["remedies"][0]["patch"] == [{"op": "replace", "path": "/learning_rate", "from": 1e-2, "value": 5e-3}]
    assert last["last_step"] == 5 and done.findings[0]["count"] == 3 and not done.failed
    assert "TEST001" in (done.folder / "report.html").read_text()


@pytest.mark.parametrize("codes", [["TEST001"], ["TEST"], ["ALL"], ["patchable"]], ids=" ".join)
def test_stop_on_ends_the_run_with_its_state_saved(config, only, codes):
    only(rule())
    with pytest.raises(StoppedByFinding, match="stopped at step 3 for TEST001") as stopped:
        ft_host.train(replace(config, stop_on=codes))
    assert stopped.value.exit_code == 5
    folder = Path(config.output_dir)
    assert manifest(folder)["status"] == "interrupted" and "TEST001" in manifest(folder)["error"]
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    assert (folder / "checkpoints" / "step-3").is_dir()


def test_what_is_only_noted_or_cannot_be_patched_does_not_stop_for_patchable(config, only):
    only(rule(severity="info"), rule(code="TEST002", remedies=lambda view: [Remedy(why="Look")]))
    assert ft_host.train(replace(config, stop_on=["patchable"])).steps == 5


def test_a_locked_field_is_no_remedy(config, only):
    only(rule())
    done = ft_host.train(replace(config, locked_fields=["learning_rate"], stop_on=["patchable"]))
    assert done.findings[0]["remedies"][0]["applicability"] == "display"
    assert "learning_rate is locked" in done.findings[0]["remedies"][0]["why"]


@pytest.mark.parametrize(("fail_on", "failed"), [("warning", True), ("error", False), (None, False)])
def test_fail_on_is_about_what_is_open_at_the_end(config, only, fail_on, failed):
    only(rule())
    assert ft_host.train(replace(config, fail_on=fail_on)).failed is failed


def test_ignored_rules_find_nothing(config, only):
    only(rule())
    assert findings(ft_host.train(replace(config, rules_ignore=["TEST"])).folder) == []


@pytest.mark.parametrize("field", ["rules_select", "rules_ignore", "stop_on"])
def test_a_code_that_is_none_is_refused_with_the_nearest(config, field):
    with pytest.raises(ConfigError, match=f"{field}: no rule .*'NUM009'.*NUM00"):
        train(replace(config, **{field: ["NUM009"]}), method="sft")


def test_a_rule_that_fails_is_told_of_once_and_the_run_goes_on(config, only):
    only(rule(message=lambda view: f"{1 / 0}"), rule(code="TEST002"))
    done = ft_host.train(config)
    assert done.steps == 5 and {each["code"] for each in done.findings} == {"TEST002"}
    said = [json.loads(line)["text"] for line in (done.folder / "events.jsonl").read_text().splitlines()]
    assert sum("rule TEST001 of test 0 failed" in text for text in said) == 1
    assert "ZeroDivisionError" in manifest(done.folder)["diagnostics"]["skipped"]["TEST001"]


def test_a_strict_engine_raises_what_a_rule_does():
    engine = Engine([(rule(message=lambda view: f"{1 / 0}"), "test 0")], {"locked_fields": []}, strict=True)
    with pytest.raises(ZeroDivisionError):
        engine.add_metrics({"kind": "train", "step": 3, "loss": 1.0})


# ---------------------------------------------------------------- beginning where another run was


def test_a_run_that_begins_with_a_checkpoint_goes_on_as_the_other_did(config):
    whole = run_in(config, "whole", save_total_limit=None)
    start = str(whole / "checkpoints" / "step-2")
    after = run_in(config, "after", resume_from_checkpoint=start)
    assert_same(lines(whole), lines(after), rel=0)
    assert manifest(after)["parent"] == str(whole)


def test_it_may_have_another_learning_rate(config):
    whole = run_in(config, "whole", save_total_limit=None)
    after = run_in(config, "after", resume_from_checkpoint=str(whole / "checkpoints" / "step-2"), learning_rate=1e-3)
    ours, theirs = lines(after), lines(whole)
    assert [line["loss"] for line in ours[:3]] == [line["loss"] for line in theirs[:3]]
    assert ours[2]["learning_rate"] == pytest.approx(theirs[2]["learning_rate"] / 10)
    assert ours[3]["loss"] != theirs[3]["loss"]


@pytest.mark.parametrize("path", ["nowhere/checkpoints/step-2", "."])
def test_what_is_no_checkpoint_of_a_run_is_refused_before_a_model_is_loaded(config, path):
    with pytest.raises(UsageError, match="resume_from_checkpoint: .* is not a checkpoint of a run"):
        ft_host.train(replace(config, resume_from_checkpoint=path))


def test_a_resumed_run_finds_what_it_would_have_found(config, only):
    only(rule())
    whole = run_in(config, "whole")
    with pytest.raises(StoppedByFinding):
        run_in(config, "stopped", stop_on=["ALL"])
    stopped = whole.parent / "stopped"
    train(replace(config, output_dir=str(stopped), save_steps=2), method="sft", resume=stopped)
    found = [
        {each["fingerprint"]: (each["first_step"], each["last_step"], each["count"])} for each in findings(stopped)
    ]
    expected = [
        {each["fingerprint"]: (each["first_step"], each["last_step"], each["count"])} for each in findings(whole)
    ]
    assert found[-1] == expected[-1]


def ended(folder: Path) -> dict[str, dict]:
    """Each finding as it was written last."""
    return {each["fingerprint"]: each for each in findings(folder)}


def learnt(folder: Path) -> dict[str, int]:
    """When facts were told, without those that are measured anew each time, and differ a little."""
    told = manifest(folder)["facts_told"]
    noisy = ("system/disk_free_mb", "probe/packing_difference")
    return {name: step for name, step in told.items() if "memory" not in name and name not in noisy}


def test_a_run_goes_on_after_what_has_stopped_it(config, only):
    only(rule(), rule(code="TEST002", stage="probe", needs=("start/loss",), test=lambda view: True))
    whole = run_in(config, "whole", eval_steps=2)
    with pytest.raises(StoppedByFinding):
        run_in(config, "stopped", eval_steps=2, stop_on=["TEST001"])
    stopped = whole.parent / "stopped"
    again = replace(config, output_dir=str(stopped), eval_steps=2, stop_on=["TEST001"])
    assert train(again, method="sft", resume=stopped).steps == 5
    assert manifest(stopped)["status"] == "finished" and manifest(stopped)["error"] is None
    assert_same(lines(whole), lines(stopped), rel=0)
    assert ended(stopped) == ended(whole)
    assert learnt(stopped) == learnt(whole)


def test_a_run_that_was_killed_finds_what_it_would_have_found(config, only):
    """Facts and findings of steps that are done again are forgotten."""
    only(rule(), rule(code="TEST002", needs=("probe/zero_grad_parameters",), stage="probe", test=lambda view: True))
    whole = run_in(config, "whole", save_total_limit=None)
    killed = whole.parent / "killed"
    assert as_if_killed(whole, killed) == 2
    train(replace(config, output_dir=str(killed), save_total_limit=None), method="sft", resume=killed)
    assert ended(killed) == ended(whole)
    assert sum(each["code"] == "TEST002" and each["step"] < 5 for each in findings(killed)) == 1
    assert learnt(killed) == learnt(whole)


def test_a_run_without_a_checkpoint_begins_again_with_nothing_said_twice(config, only):
    only(rule(code="TEST002", stage="before", needs=("data/rows",), test=lambda view: True))
    folder = run_in(config, "a", max_steps=2)
    shutil.rmtree(folder / "checkpoints")
    again = replace(config, output_dir=str(folder), max_steps=2)
    train(again, method="sft", resume=folder, asked=Resuming(restart=True))
    assert [line["step"] for line in lines(folder, "eval")] == [0, 2]
    assert [each["step"] for each in findings(folder)] == [0, 2]


def test_a_stopped_run_is_not_judged_as_a_whole(config, only):
    only(rule(), rule(code="TEST002", stage="after", test=lambda view: True))
    with pytest.raises(StoppedByFinding):
        ft_host.train(replace(config, stop_on=["TEST001"]))
    folder = Path(config.output_dir)
    assert set(ended(folder)) == {"TEST001"}
    train(replace(config, stop_on=["TEST001"]), method="sft", resume=folder)
    assert set(ended(folder)) == {"TEST001", "TEST002"}


def test_what_ended_a_run_has_passed_once_it_goes_on(config, only):
    broken = rule(code="TEST003", needs=("watch/not_finite",), test=lambda view: True)
    only(broken)
    with pytest.raises(FtHostError, match="weights were not updated"):
        ft_host.train(replace(config, max_steps=40, learning_rate=1e30, optim="sgd", max_grad_norm=0, save_steps=1))
    folder = Path(config.output_dir)
    assert ended(folder)["TEST003"]["state"] == "open"
    done = lines(folder)[-1]["step"]
    going_on = replace(config, max_steps=done, learning_rate=1e30, optim="sgd", max_grad_norm=0, eval_dataset=None)
    train(going_on, method="sft", resume=folder)
    assert ended(folder)["TEST003"]["state"] == "cleared"


def test_the_checkpoint_that_a_run_began_with_is_needed_no_more(config):
    whole = run_in(config, "whole", save_total_limit=None)
    start = str(whole / "checkpoints" / "step-2")
    after = run_in(config, "after", resume_from_checkpoint=start, save_total_limit=None)
    shutil.rmtree(whole)
    shutil.rmtree(after / "checkpoints" / "step-5")
    again = replace(config, output_dir=str(after), resume_from_checkpoint=start, max_steps=6)
    assert train(again, method="sft", resume=after).steps == 6
    assert manifest(after)["parent"] == str(whole) and str(whole) in (after / "report.html").read_text()
    shutil.rmtree(after / "checkpoints")
    with pytest.raises(UsageError, match="a checkpoint was written at step 6 and there is none"):
        train(again, method="sft", resume=after)
    with pytest.raises(ConfigError, match="step-2 is not a checkpoint of a run"):
        train(again, method="sft", resume=after, asked=Resuming(restart=True))


def test_a_damaged_checkpoint_or_other_steps_are_no_beginning(config):
    whole = run_in(config, "whole", max_steps=2)
    start = whole / "checkpoints" / "step-2"
    with pytest.raises(ConfigError, match="a step of .* has 8 rows, and would now have 4"):
        run_in(config, "other", resume_from_checkpoint=str(start), per_device_train_batch_size=4)
    (start / "progress.json").write_text("{}")
    with pytest.raises(ConfigError, match="step-2 is not a checkpoint of a run .progress.json has 2 bytes"):
        run_in(config, "damaged", resume_from_checkpoint=str(start))


# ---------------------------------------------------------------- from the command line, with a plugin's rule

MINE = """

from ft_host.diagnostics import Rule
from ft_sft.config import SFTConfig as Config

@hookimpl
def ft_rules():
    return [Rule(code="MINE001", title="late", stage="train", needs=("loss",), test=lambda view: view.step >= 3,
                 message=lambda view: "late", window=2, least=1, when="w", why="y", remedy="r", source="own")]

@hookimpl
def ft_finding(finding, run):
    with open(run.folder.path / "sink.txt", "a") as file:
        file.write(f"{finding.fingerprint} {finding.state} {finding.step}\\n")
"""


@pytest.fixture
def mine(tmp_path) -> str:
    """A method in a file, with a rule and a sink of findings."""
    method = Path(ft_host.__file__).parents[1] / "plugins/ft-sft/ft_sft/method.py"
    (tmp_path / "mine.py").write_text(method.read_text() + MINE)
    return str(tmp_path / "mine.py")


def called(*argv: str) -> subprocess.CompletedProcess:
    return command("train", *argv)


def trained(config, method: str, *flags: str, **changes) -> tuple[subprocess.CompletedProcess, Path]:
    """The command line that trains `config`, and the folder of the run."""
    changed, default = (
        dataclasses.asdict(beside(config, "run", progress="lines", **changes)),
        dataclasses.asdict(type(config)()),
    )
    file = Path(method).with_name("run.json")
    file.write_text(json.dumps({name: value for name, value in changed.items() if value != default[name]}))
    return called(method, str(file), *flags), Path(changed["output_dir"])


def test_a_plugin_s_sink_has_each_finding_and_fail_on_gives_the_exit_code(config, mine):
    done, folder = trained(config, mine, "--rules-select", "MINE", "--fail-on", "warning")
    assert done.returncode == 5, done.stderr
    assert "Warning MINE001: late" in done.stderr and manifest(folder)["status"] == "finished"
    assert (folder / "sink.txt").read_text().splitlines() == ["MINE001 open 3", "MINE001 open 5"]


def test_two_processes_stop_together_and_go_on_together(config, mine):
    done, folder = trained(
        config, mine, "--rules-select", "MINE", "--stop-on", "MINE001", num_processes=2, per_device_train_batch_size=4
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("Warning MINE001") == 1 and "as stop_on requires" in done.stderr
    assert manifest(folder)["status"] == "interrupted" and (folder / "report.html").is_file()
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    assert [each["step"] for each in findings(folder)] == [3, 3]
    done = called("--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]


def test_rules_of_two_plugins_with_one_code_are_refused(monkeypatch):
    from ft_host.errors import PluginBroken

    class Hook:
        @staticmethod
        def get_hookimpls():
            return [type("Impl", (), {"plugin_name": "x", "function": staticmethod(lambda: [rule(), rule()])})()]

    plugins = type("Plugins", (), {"hook": type("Hooks", (), {"ft_rules": Hook})})()
    with pytest.raises(PluginBroken, match="rule TEST001 is defined by x and by x"):
        collect.all_rules(plugins, [])
