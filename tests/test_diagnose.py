"""ft-host diagnose, rules and explain: what is the matter with a run, by its folder alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_host import registry
from ft_host.cli import main
from ft_host.diagnostics import collect
from ft_host.diagnostics.replay import diagnose
from ft_host.errors import UsageError
from ft_host.testing.runs import make_run

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = json.loads((ROOT / "docs" / "findings.schema.json").read_text(encoding="utf-8"))
BROKEN = {
    "watch/not_finite": "loss",
    "watch/not_finite_value": "nan",
    "watch/not_finite_step": 61,
    "watch/not_finite_parameter": "lm_head.weight",
}


def rewrite(folder: Path, **fields) -> None:
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | fields))


@pytest.fixture
def broken(tmp_path) -> Path:
    """A run that ended with a loss that is no number."""
    folder = make_run(
        tmp_path / "broken", steps=60, status="failed", error="step 61: the loss is nan", planned_steps=100
    )
    info = json.loads((folder / "run.json").read_text())
    config = info["config"] | {"rules_select": ["NUM", "XYZ"]}  # whatever other rules say of these numbers
    rewrite(folder, facts=BROKEN, facts_told=dict.fromkeys(BROKEN, 60), config=config)
    return folder


def called(*argv: str, capsys) -> tuple[int, str, str]:
    code = main([*argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_finding(**fields) -> dict:
    return {
        "schema": "ft-host.finding/1",
        "code": "XYZ001",
        "title": "t",
        "severity": "warning",
        "stage": "train",
        "state": "open",
        "message": "It is bad.",
        "why": "y",
        "evidence": [{"metric": "loss", "value": 1.0}],
        "remedies": [],
        "cause": None,
        "step": 9,
        "first_step": 3,
        "last_step": 9,
        "count": 4,
        "window": 9,
        "share": 0.5,
        "muted_by": None,
        "plugin": "ft-xyz 1.0",
        "fingerprint": "XYZ001",
        "page": "docs/rules/XYZ001.md",
    } | fields


# ---------------------------------------------------------------- diagnose


def test_what_a_folder_says_in_words(broken, capsys):
    code, out, err = called("diagnose", str(broken), capsys=capsys)
    assert (code, err) == (0, "")
    assert "failed after 60 steps, 1 error" in out.splitlines()[0]
    text = " ".join(out.split())
    assert "Error NUM001: The loss became nan at step 61; the gradient of lm_head.weight" in text
    assert "at step 60; watch/not_finite loss" in text
    assert "1. Look at the rows of this step" in text  # what came before says nothing of the rate
    assert "2. Lower learning_rate from 0.001 to 0.0002" in text and "learning_rate: 0.001 -> 0.0002; unsafe" in text


def test_fail_on_gives_the_exit_code(broken, capsys):
    assert called("diagnose", str(broken), "--fail-on", "error", capsys=capsys)[0] == 5
    assert called("diagnose", str(broken), "--fail-on", "error", "--ignore", "NUM", capsys=capsys)[0] == 0
    assert called("diagnose", str(broken), "--fail-on", "error", "--select", "OPT", capsys=capsys)[0] == 0


def test_json_is_as_the_schema_says(broken, capsys, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    file = tmp_path / "out.json"
    code, out, _ = called("diagnose", str(broken), "--format", "json", "--output", str(file), capsys=capsys)
    told = json.loads(file.read_text())
    assert code == 0 and out == ""
    jsonschema.validate(told, SCHEMA)
    assert told["findings"][0]["code"] == "NUM001" and told["status"] == "failed" and told["steps"] == 60
    for finding in told["findings"]:
        jsonschema.validate(finding, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told["findings"][0] | {"state": "gone"}, SCHEMA)


def test_sarif_names_the_rule_and_the_line_of_the_run_file(broken, capsys):
    (run,) = json.loads(called("diagnose", str(broken), "--format", "sarif", capsys=capsys)[1])["runs"]
    rules = run["tool"]["driver"]["rules"]
    (result,) = [each for each in run["results"] if each["ruleId"] == "NUM001"]
    rule = rules[result["ruleIndex"]]
    assert (
        rule["id"] == "NUM001" and rule["help"]["markdown"].startswith("# NUM001") and rule["fullDescription"]["text"]
    )
    assert rule["defaultConfiguration"]["level"] == result["level"] == "error"
    assert result["partialFingerprints"] == {"ftHostFinding/v1": "NUM001"}
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "run.yaml"  # learning_rate is from a flag, so no line of its own
    rewrite(broken, origins={"learning_rate": "run.yaml:7"})
    (run,) = json.loads(called("diagnose", str(broken), "--format", "sarif", capsys=capsys)[1])["runs"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 7}


def test_a_muted_or_past_finding_is_no_alert_in_sarif(broken, capsys):
    rows = [
        one_finding(state="muted", muted_by="NUM001"),
        one_finding(state="cleared", code="XYZ002", fingerprint="XYZ002"),
    ]
    (broken / "findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run,) = json.loads(called("diagnose", str(broken), "--format", "sarif", capsys=capsys)[1])["runs"]
    results = {each["ruleId"]: each for each in run["results"]}
    assert results["XYZ001"]["suppressions"] == [{"kind": "external", "justification": "follows from NUM001"}]
    assert (results["XYZ002"]["kind"], results["XYZ002"]["level"]) == ("informational", "none")


def test_sarif_has_the_shape_that_the_standard_asks_for(broken, capsys):
    """SARIF 2.1.0, the properties that code hosts read; its schema is not at hand without a network."""
    rows = [one_finding(), one_finding(state="muted", muted_by="NUM001", code="XYZ002", fingerprint="XYZ002")]
    (broken / "findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(called("diagnose", str(broken), "--format", "sarif", capsys=capsys)[1])
    assert set(told) == {"$schema", "version", "runs"} and told["version"] == "2.1.0"
    (run,) = told["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "ft-host" and re.fullmatch(r"\d+\.\d+\.\d+", driver["semanticVersion"])
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for rule in driver["rules"]:
        assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        assert all(rule[name]["text"].strip() for name in ("shortDescription", "fullDescription", "help"))
    assert {result["ruleId"] for result in run["results"]} == {"NUM001", "XYZ001", "XYZ002"}
    for result in run["results"]:
        assert result["message"]["text"].strip() and result["level"] in ("none", "note", "warning", "error")
        assert "ruleIndex" not in result or ids[result["ruleIndex"]] == result["ruleId"]
        for location in result["locations"]:
            place = location["physicalLocation"]
            assert place["artifactLocation"]["uri"] and place["region"]["startLine"] >= 1
        assert all(each["kind"] in ("inSource", "external") for each in result.get("suppressions", ()))
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
    for invocation in run["invocations"]:
        assert invocation["executionSuccessful"] is True


def test_what_only_the_run_could_find_is_taken_from_its_record(broken, capsys):
    """Its plugin isn't installed."""
    first, last = one_finding(), one_finding(message="It is worse.", severity="error")
    (broken / "findings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (first, last)))
    found = diagnose(broken)
    assert [each["code"] for each in found.findings] == ["XYZ001", "NUM001"]  # of two errors the earlier one first
    assert found.recorded == ["XYZ001"] and found.findings[0]["message"] == "It is worse."
    assert "as the run recorded it" in called("diagnose", str(broken), capsys=capsys)[1]
    assert [each["code"] for each in diagnose(broken, select=["NUM"]).findings] == ["NUM001"]


def test_what_is_taken_from_its_record_is_contrary_to_nothing_that_is_found_now(broken):
    """NUM001 asks for a lower rate."""
    rate = json.loads((broken / "run.json").read_text())["config"]["learning_rate"]
    asked = [
        {
            "rank": rank,
            "why": f"Set {name}",
            "applicability": "unsafe",
            "from_start": True,
            "expected": "",
            "patch": [{"op": "replace", "path": f"/{name}", "from": None, "value": value}],
        }
        for rank, (name, value) in enumerate([("learning_rate", 10 * rate), ("lr_scheduler_type", "constant")], 1)
    ]
    (broken / "findings.jsonl").write_text(json.dumps(one_finding(remedies=asked)) + "\n")
    found = {each["code"]: each for each in diagnose(broken).findings}
    assert found["NUM001"]["remedies"][1]["patch"][0]["path"] == "/learning_rate"
    assert [(each["rank"], each["why"]) for each in found["XYZ001"]["remedies"]] == [(1, "Set lr_scheduler_type")]


def test_a_method_that_is_gone_leaves_the_rules_of_the_host(broken):
    rewrite(
        broken,
        method="gone",
        reference="ft-gone:gone",
        plugins=[
            {
                "kind": "diagnostics",
                "name": "gone",
                "distribution": "ft-gone",
                "version": "0.1.0",
                "stability": "stable",
            }
        ],
    )
    found = diagnose(broken)
    assert [each["code"] for each in found.findings] == ["NUM001"]
    assert found.notes[0].startswith(
        "the method gone can't be loaded, so its rules are left out: no method 'ft-gone:gone'"
    )
    assert found.notes[1].startswith("the diagnostics ft-gone:gone can't be loaded")


def test_a_run_that_still_runs_is_not_judged_as_a_whole(tmp_path, monkeypatch):
    from ft_host.diagnostics import Rule, rules

    whole = Rule(
        code="TST001",
        title="t",
        stage="after",
        needs=("loss",),
        test=lambda view: True,
        message=lambda view: "It ended.",
        when="w",
        why="y",
        remedy="r",
        source="own",
    )
    monkeypatch.setattr(rules, "RULES", [whole])
    folder = make_run(tmp_path / "run", steps=60, status="running", planned_steps=100)
    assert diagnose(folder, select=["TST001"]).findings == []
    rewrite(folder, status="finished")
    assert [each["code"] for each in diagnose(folder, select=["TST001"]).findings] == ["TST001"]


def test_a_run_of_a_host_without_diagnostics_can_be_diagnosed(tmp_path, capsys):
    found = diagnose(make_run(tmp_path / "old", steps=40))
    assert "ft-host was 0.1.0 in the run" in found.notes[-1]
    assert "NUM001" in found.skipped
    assert "no answer" not in called("diagnose", str(tmp_path / "old"), capsys=capsys)[1]
    text = called("diagnose", str(tmp_path / "old"), "--all", capsys=capsys)[1]
    assert "rules gave no answer" in text and "watch/not_finite was not produced" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("RUN", "--select", "NUM011"), "--select: no rule has the code or the prefix 'NUM011'; did you mean NUM001?"),
        (("RUN", "--format", "xml"), "invalid choice: 'xml'"),
        (("RUN", "--format", "json", "--all"), "--all: is for text"),
        (("RUN", "--output", "no/such/folder/file"), "no/such/folder/file: could not be written"),
    ],
)
def test_refusals(broken, capsys, argv, says):
    code, _, err = called("diagnose", *(str(broken) if each == "RUN" else each for each in argv), capsys=capsys)
    assert code in (1, 2) and says in err


@pytest.mark.parametrize(
    "argv",
    [
        ("diagnose", "RUN"),
        ("diagnose", "RUN", "--format", "sarif"),
        ("rules",),
        ("explain", "NUM001"),
        ("patch", "RUN", "NUM001"),
    ],
)
def test_none_of_it_imports_torch(broken, argv):
    program = (
        "import sys; from ft_host.cli import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'torch was imported'; sys.exit(code)"
    )
    command = [sys.executable, "-c", program, *(str(broken) if each == "RUN" else each for each in argv)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- rules and explain


def test_all_rules_are_listed_with_where_they_are_from(capsys):
    code, out, err = called("rules", capsys=capsys)
    assert code == 0 and err == ""
    (line,) = [line for line in out.splitlines() if line.startswith("NUM001")]
    assert line.split()[1:3] == ["error", "train"] and line.endswith(collect.HOST)
    listed = json.loads(called("rules", "--json", capsys=capsys)[1])
    assert {"code", "severity", "stage", "title", "plugin", "when", "why", "remedy", "source"} <= listed[0].keys()
    codes = [each["code"] for each in listed]
    assert len(codes) == len(set(codes))
    before = json.loads(called("rules", "--stage", "train", "--json", capsys=capsys)[1])
    assert {each["stage"] for each in before} == {"train"}


def test_rules_of_a_method_are_the_host_s_and_its_own(capsys):
    every = {each["plugin"].split()[0] for each in json.loads(called("rules", "--json", capsys=capsys)[1])}
    listed = {
        each["plugin"].split()[0] for each in json.loads(called("rules", "--method", "dpo", "--json", capsys=capsys)[1])
    }
    assert "ft-host" in listed and listed <= {"ft-host", "ft-dpo"} and listed <= every
    code, _, err = called("rules", "--method", "dop", capsys=capsys)
    assert code == 4 and "did you mean 'dpo'?" in err


def plugin(tmp_path: Path, name: str, text: str, version: str = "1.0") -> None:
    """A distribution with diagnostics, in a folder on sys.path."""
    module = name.replace("-", "_")
    (tmp_path / f"{module}.py").write_text(text)
    info = tmp_path / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: ft-host>=0.4\n"
    )
    (info / "entry_points.txt").write_text(f"[ft_host.diagnostics]\n{name.removeprefix('ft-')} = {module}\n")


RULES = """
from ft_host import hookimpl
from ft_host.diagnostics import Rule

@hookimpl
def ft_rules():
    return [Rule(code="{code}", title="Mine", stage="train", needs=("loss",), test=lambda view: view["loss"] > 0,
                 message=lambda view: "Mine.", when="w", why="y", remedy="r", source="own")]
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry.catalog.cache_clear()
    yield folder
    registry.catalog.cache_clear()
    for name in ("ft_good", "ft_bad", "ft_twin"):
        sys.modules.pop(name, None)


def test_a_broken_plugin_is_told_of_and_hides_no_other(path, capsys):
    plugin(path, "ft-good", RULES.format(code="ZZZ001"))
    plugin(path, "ft-bad", "raise RuntimeError('oh')")
    plugin(path, "ft-twin", RULES.format(code="NUM001"))
    code, out, err = called("rules", capsys=capsys)
    assert code == 0 and "ZZZ001" in out and "NUM001" in out
    assert "ft-bad 1.0" in err and "RuntimeError: oh" in err
    assert "ft-twin 1.0: its rule NUM001 is left out" in err
    assert "ft-good 1.0" in called("explain", "ZZZ001", capsys=capsys)[1]


def test_a_blocked_plugin_is_not_imported(path, capsys, monkeypatch):
    plugin(path, "ft-bad", "raise RuntimeError('oh')")
    monkeypatch.setenv("FT_HOST_BLOCK", "ft-bad")
    code, _, err = called("rules", capsys=capsys)
    assert (code, err) == (0, "")


def test_a_rule_is_explained(capsys):
    code, out, _ = called("explain", "num001", capsys=capsys)
    assert code == 0
    for heading in ("WHEN", "WHY", "WHAT TO DO", "WHAT IT READS", "WHAT IT MUTES", "SOURCE"):
        assert f"\n{heading}\n" in out
    assert "watch/not_finite" in out and max(map(len, out.splitlines())) <= 100


def test_an_unknown_code_is_refused_with_the_nearest(capsys):
    code, out, err = called("explain", "NUM01", capsys=capsys)
    assert (code, out) == (2, "") and "no rule NUM01; did you mean NUM001?" in err


def test_diagnostics_of_the_config_are_asked_of_the_folder(broken, path):
    plugin(path, "ft-good", RULES.format(code="ZZZ001"))
    rewrite(
        broken,
        plugins=[
            {"kind": "diagnostics", "name": "good", "distribution": "ft-good", "version": "0.9", "stability": "stable"}
        ],
    )
    found = diagnose(broken, select=["ALL"])
    assert "ZZZ001" in {each["code"] for each in found.findings}
    assert "ft-good was 0.9 in the run, its rules here are those of 1.0" in found.notes


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        diagnose(tmp_path / "none")
