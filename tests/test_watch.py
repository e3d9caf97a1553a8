"""Diagnostics in whole runs: what stops one, what fails one, what is left behind, and what goes on from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import ft_host
from ft_host.diagnostics import Engine, Remedy, Rule, collect
from ft_host.errors import ConfigError, StoppedByFinding, UsageError
from ft_host.launch import train
from ft_host.testing.invariants import assert_same, lines, run_in


def rule(**fields) -> Rule:
    """One that finds steps 3 and later bad, and would have the learning rate lowered."""
    given = {
        "code": "TEST001", "title": "late", "stage": "train", "needs": ("loss",), "test": lambda view: view.step >= 3,
        "message": lambda view: f"step {view.step} is late", "window": 2, "least": 1, "share": 0.5,
        "remedies": lambda view: [Remedy(why="Lower it", patch={"learning_rate": view.config.learning_rate / 2})],
        "when": "from step 3 on", "why": "time", "remedy": "none", "source": "a test",
    }  # fmt: skip
    return Rule(**given | fields)


@pytest.fixture
def only(monkeypatch):
    """`only(rule, ...)`: the rules of the runs to come."""

    def set_to(*rules: Rule) -> None:
        monkeypatch.setattr("ft_host.diagnostics.watch.all_rules", lambda plugins, infos: [(r, "test 0") for r in rules])

    return set_to


def findings(folder: Path) -> list[dict]:
    file = folder / "findings.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def manifest(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_finding_is_in_the_folder_and_in_what_train_returns(config, only):
    only(rule())
    done = ft_host.train(config)
    (first, *_, last) = findings(done.folder)
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
    done = ft_host.train(replace(config, locked=["learning_rate"], stop_on=["patchable"]))
    assert done.findings[0]["remedies"][0]["applicability"] == "display"
    assert "learning_rate is locked" in done.findings[0]["remedies"][0]["why"]


@pytest.mark.parametrize(("fail_on", "failed"), [("warning", True), ("error", False), (None, False)])
def test_fail_on_is_about_what_is_open_at_the_end(config, only, fail_on, failed):
    only(rule())
    assert ft_host.train(replace(config, fail_on=fail_on)).failed is failed


def test_ignored_rules_find_nothing(config, only):
    only(rule())
    assert findings(ft_host.train(replace(config, ignore=["TEST"])).folder) == []


@pytest.mark.parametrize("field", ["select", "ignore", "stop_on"])
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
    engine = Engine([(rule(message=lambda view: f"{1 / 0}"), "test 0")], {"locked": []}, strict=True)
    with pytest.raises(ZeroDivisionError):
        engine.see({"kind": "train", "step": 3, "loss": 1.0})


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
    found = [{each["fingerprint"]: (each["first_step"], each["last_step"], each["count"])} for each in findings(stopped)]
    expected = [{each["fingerprint"]: (each["first_step"], each["last_step"], each["count"])} for each in findings(whole)]
    assert found[-1] == expected[-1]


def test_rules_of_two_plugins_with_one_code_are_refused(monkeypatch):
    from ft_host.errors import PluginBroken

    class Hook:
        @staticmethod
        def get_hookimpls():
            return [type("Impl", (), {"plugin_name": "x", "function": staticmethod(lambda: [rule(), rule()])})()]

    plugins = type("Plugins", (), {"hook": type("Hooks", (), {"ft_rules": Hook})})()
    with pytest.raises(PluginBroken, match="rule TEST001 is given by x and by x"):
        collect.all_rules(plugins, [])
