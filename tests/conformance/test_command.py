"""`ft-host check` and the suite as pytest's items, with made-up checks that end in each way that there is."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_host.cli import main
from ft_host.registry import catalog, load
from ft_host.registry.conformance import recorded
from ft_host.testing.conformance import command, run
from ft_host.testing.conformance import record as recording
from ft_host.testing.conformance.check import Check, DoesNotApply, NotMet
from ft_host.testing.conformance.command import NOT_MET

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
from dataclasses import dataclass
from ft_host.api import RunConfig

@dataclass(kw_only=True)
class Config(RunConfig):
    pass
"""
METHOD = """\
from ft_host.api import hookimpl

@hookimpl
def ft_prepare(row):
    return row

@hookimpl
def ft_collate(rows):
    return rows

@hookimpl
def ft_loss(batch):
    return 0 / len(batch)
"""


def passes(subject):
    return {"loss": 0.25}


def fails(subject):
    raise NotMet("the loss is 0.25, expected 0.5")


def leaves_out(subject):
    raise DoesNotApply("it has no rules")


def goes_wrong(subject):
    return {}["no such key"]


def meets_an_error_of_the_package(subject):
    return importlib.import_module("ft_tiny.method").ft_loss([])


def prints(subject):
    print("a progress bar")
    os.system("echo of a child")


def made(id, test, about="method", tier="experimental"):
    return Check(
        id=id,
        title=f"What {id} says is so",
        about=about,
        tier=tier,
        why="Why it matters.",
        looks_at="What it looks at.",
        mend="Mend it so.",
        test=test,
    )


@pytest.fixture
def package(install_plugin, tmp_path):
    """Installs ft-tiny, with a method; gives a function that declares what it can't meet. Gives the package's
    folder."""
    install_plugin(
        "ft-tiny",
        "0.2.0",
        entry_points={
            "ft_host.methods": {"tiny": "ft_tiny.method"},
            "ft_host.configs": {"tiny": "ft_tiny.config:Config"},
        },
        modules={"ft_tiny.config": CONFIG, "ft_tiny.method": METHOD},
        requires=["ft-host"],
    )
    folder = tmp_path / "site-of-the-test" / "ft_tiny"

    def declares(**reasons: str) -> None:
        lines = [f'{id.replace("_", "-")} = "{reason}"\n' for id, reason in reasons.items()]
        (folder / "conformance.toml").write_text("[not_met]\n" + "".join(lines), encoding="utf-8")

    return declares, folder


@pytest.fixture
def checks(monkeypatch):
    """Makes these the checks that there are. They need no library, and compare with nothing that is recorded."""
    monkeypatch.setattr(command, "load_libraries", lambda: True)
    monkeypatch.setattr(recording, "FILES", {})

    def are(*found: Check) -> None:
        monkeypatch.setattr(run, "CHECKS", {check.id: check for check in found})

    return are


ALL = [
    made("meta-name", passes, about="package"),
    made("loss-right", passes),
    made("loss-wrong", fails),
    made("loss-coupled", fails),
    made("rules-quiet", leaves_out),
]


def test_each_check_has_a_line_and_a_failure_says_what_was_found_the_mend_and_the_page(package, checks, capsys):
    declares, _ = package
    declares(loss_coupled="rows of a step are coupled (eq. 7)")
    checks(*ALL)
    assert main(["check", "ft-tiny", "--durations", "2"]) == NOT_MET
    said, error = capsys.readouterr()
    assert error == ""
    lines = re.sub(r" *\d+(\.\d)? s\b", "  N s", said).splitlines()
    assert lines[0] == "ft-tiny 0.2.0 (experimental), checks of the experimental tier"
    assert "  passed    meta-name  N s" in lines and "  passed    loss-right  N s" in lines
    at = lines.index("  FAILED    loss-wrong  N s")
    assert [line.strip() for line in lines[at + 1 : at + 4]] == [
        "the loss is 0.25, expected 0.5",
        "To do: Mend it so.",
        "ft-host check --explain loss-wrong (docs/checks/loss-wrong.md)",
    ]
    at = lines.index("  declared  loss-coupled  N s")
    assert lines[at + 1].strip() == "rows of a step are coupled (eq. 7) (the loss is 0.25, expected 0.5)"
    assert "  left out  rules-quiet   it has no rules" in lines
    at = lines.index("5 checks: 2 passed, 1 failed, 1 declared, 1 left out, in  N s")
    assert len(lines[at + 1 :]) == 2  # the slowest two


def test_what_is_declared_and_passes_fails(package, checks, capsys):
    package[0](loss_right="it can't")
    checks(made("loss-right", passes))
    assert main(["check", "tiny"]) == NOT_MET
    assert "passes, and the package says that it can't: \"it can't\"" in capsys.readouterr().out


def test_what_one_plugin_of_a_package_declares_holds_for_no_other(install_plugin, tmp_path, checks, capsys):
    install_plugin(
        "ft-tiny",
        "0.2.0",
        entry_points={
            "ft_host.methods": {"tiny": "ft_tiny.method", "twin": "ft_tiny.twin"},
            "ft_host.configs": {"tiny": "ft_tiny.config:Config", "twin": "ft_tiny.config:Config"},
        },
        modules={"ft_tiny.config": CONFIG, "ft_tiny.method": METHOD, "ft_tiny.twin": METHOD},
        requires=["ft-host"],
    )

    def only_the_twin(subject):
        if subject.plugin.name == "tiny":
            raise NotMet("0.25, expected 0.5")

    file = tmp_path / "site-of-the-test" / "ft_tiny" / "conformance.toml"
    checks(made("loss-right", only_the_twin))
    file.write_text('[not_met]\nloss-right = "coupled"\n', encoding="utf-8")
    assert main(["check", "ft-tiny"]) == NOT_MET
    said = capsys.readouterr().out
    assert "declared  loss-right [tiny]" in said and "FAILED    loss-right [twin]" in said
    file.write_text('[not_met.tiny]\nloss-right = "coupled"\n', encoding="utf-8")
    assert main(["check", "ft-tiny"]) == 0
    for text, message in {
        '[not_met.tinny]\nloss-right = "x"': "the package has no plugin 'tinny'; did you mean tiny?",
        '[not_met.tiny]\nloss-rihgt = "x"': "not_met.tiny: there is no check 'loss-rihgt'; did you mean loss-right?",
        "[not_met]\nloss-right = 3": "not_met: loss-right: expected the reason as text, found 3",
        "[notmet]": "'notmet'; did you mean not_met?; expected config, not_met",
        "not_met = 3": "not_met: expected a table, found 3",
        "[": "conformance.toml: ",
    }.items():
        file.write_text(text, encoding="utf-8")
        assert main(["check", "ft-tiny"]) == 3
        assert message in capsys.readouterr().err


def test_an_error_of_the_suite_is_no_failure_of_the_package_and_nothing_that_it_could_declare(package, checks, capsys):
    package[0](loss_odd="never")
    checks(made("loss-odd", goes_wrong))
    # this file isn't in the suite; as if it were
    run_blame = run.blamed.__globals__
    before, run_blame["SUITE"] = run_blame["SUITE"], Path(__file__).parent
    try:
        assert main(["check", "ft-tiny"]) == 1
    finally:
        run_blame["SUITE"] = before
    said = capsys.readouterr().out
    assert "error     loss-odd" in said and "1 checks: 1 error" in said
    assert "the suite itself went wrong: KeyError: 'no such key'" in said and "test_command.py" in said


def test_an_error_of_the_package_names_its_line_and_not_the_mend_of_something_else(package, checks, capsys):
    checks(made("loss-empty", meets_an_error_of_the_package))
    assert main(["check", "ft-tiny"]) == NOT_MET
    said = capsys.readouterr().out
    assert "To do: Mend this error: it came before there was anything to compare." in said and "Mend it so" not in said
    assert main(["check", "ft-tiny", "--json"]) == NOT_MET
    (found,) = json.loads(capsys.readouterr().out)["checks"]
    assert found["result"] == "failed" and "division by zero" in found["said"]
    assert found["place"].endswith("ft_tiny/method.py:13")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.py", "raise ValueError('half written')", "failed to import: ValueError: half written"),
        ("method.py", "def (", "failed to import: SyntaxError"),
        ("method.py", METHOD.replace("0 / len(batch)", "exit(3)"), "SystemExit: 3 ("),
    ],
)
def test_a_package_that_cannot_be_imported_or_that_ends_python_fails_and_no_more(
    package, checks, capsys, file, text, said
):
    (package[1] / file).write_text(text, encoding="utf-8")
    catalog.cache_clear()
    checks(
        made("loss-empty", lambda subject: load(subject.plugin).ft_loss([]) if subject.config_class else None),
        made("rollouts-whole", passes, about="rollouts"),
    )
    assert main(["check", "ft-tiny"]) == NOT_MET
    shown = capsys.readouterr().out
    assert "FAILED    loss-empty" in shown and said in shown and "1 checks: 1 failed" in shown


def test_a_package_that_is_blocked_is_told_as_such(package, checks, capsys, monkeypatch):
    monkeypatch.setenv("FT_HOST_BLOCK", "ft-tiny")
    catalog.cache_clear()
    checks(ALL[0])
    assert main(["check", "ft-tiny"]) == 4
    assert "ft-tiny is blocked by the environment variable FT_HOST_BLOCK" in capsys.readouterr().err


def test_json_has_the_documented_keys(package, checks, capsys):
    package[0](loss_coupled="coupled")
    checks(*ALL)
    assert main(["check", "ft-tiny", "--json"]) == NOT_MET
    found = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    _, whole, _, each = re.split(r"^Of (each of `checks`|the object):$", page, flags=re.MULTILINE)[-4:]
    keys = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
    assert keys.findall(whole) == list(found)
    assert all(keys.findall(each.partition("\n## ")[0]) == list(check) for check in found["checks"])
    assert [check["result"] for check in found["checks"]] == ["passed", "passed", "failed", "declared", "left out"]
    assert found["checks"][1]["figures"] == {"loss": 0.25} and found["checks"][0]["plugin"] == "ft-tiny"
    assert found["versions"]["ft-host"] and found["format"] == 1 and found["tier"] == "experimental"


def test_sarif_has_the_shape_that_the_standard_asks_for(package, checks, capsys, tmp_path):
    """SARIF 2.1.0: required properties (3.13 to 3.58) and what code hosts read."""
    package[0](loss_coupled="coupled")
    checks(*ALL, made("loss-empty", meets_an_error_of_the_package))
    file = tmp_path / "check.sarif"
    assert main(["check", "ft-tiny", "--sarif", "--output", str(file)]) == NOT_MET
    assert "FAILED    loss-wrong" in capsys.readouterr().out  # the table is there too
    told = json.loads(file.read_text(encoding="utf-8"))
    assert set(told) == {"$schema", "version", "runs"} and told["version"] == "2.1.0"
    (found,) = told["runs"]
    rules = found["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) == 6
    for rule in rules:
        assert all(rule[name]["text"].strip() for name in ("shortDescription", "fullDescription", "help"))
    results = {result["ruleId"]: result for result in found["results"]}
    assert set(results) == {"loss-wrong", "loss-coupled", "loss-empty"}
    for id, result in results.items():
        assert rules[result["ruleIndex"]]["id"] == id and result["level"] == "error" and result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert re.match(r"file:///|[\w./-]+$", place["artifactLocation"]["uri"])
    assert results["loss-coupled"]["suppressions"][0]["kind"] == "inSource"
    assert "suppressions" not in results["loss-wrong"]
    place = results["loss-empty"]["locations"][0]["physicalLocation"]
    assert place["region"]["startLine"] == 13 and place["artifactLocation"]["uri"].endswith("ft_tiny/method.py")
    assert found["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]


def test_what_is_printed_meanwhile_is_not_shown_unless_asked_for(package, checks, capfd):
    checks(made("loss-loud", prints))
    assert main(["check", "ft-tiny"]) == 0
    said, error = capfd.readouterr()
    assert "passed    loss-loud" in said and "progress bar" not in said + error and "of a child" not in said + error
    assert main(["check", "ft-tiny", "--verbose"]) == 0
    said, _ = capfd.readouterr()
    assert "a progress bar" in said and "of a child" in said


def test_list_and_explain_ask_nothing(checks, capsys):
    checks(*ALL, made("runs-two", fails, tier="stable"))
    assert main(["check", "--list"]) == 0
    said = capsys.readouterr().out
    assert "loss-wrong    What loss-wrong says is so" in said and "runs-two" not in said
    assert main(["check", "--list", "--tier", "stable", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [check["id"] for check in found] == [*(check.id for check in ALL), "runs-two"]
    assert found[-1]["tier"] == "stable" and found[-1]["page"] == "docs/checks/runs-two.md"
    assert main(["check", "--explain", "runs-t"]) == 0
    assert capsys.readouterr().out.startswith(
        "runs-two: What runs-two says is so\n\nTier stable, asked of each method."
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ft-tiny", "--only", "loss-wrogn"], "there is no check 'loss-wrogn'; did you mean loss-wrong?"),
        (["ft-tiny", "--only", "runs"], "runs is of another tier than experimental; choose it: --tier stable"),
        (["ft-tinny"], "no package 'ft-tinny' with plugins is installed; did you mean ft-tiny?"),
        (["ft-tiny", "--only", "backend"], "ft-tiny has no plugin that these checks are about"),
        (["--explain", "los"], ""),
        (["ft-tiny", "--list"], "expected one of PACKAGE, --list, --explain CHECK"),
        ([], "expected one of PACKAGE, --list, --explain CHECK"),
        (["ft-tiny", "--record", "--only", "loss"], "--record is of a whole tier, not --only some checks"),
        (["--list", "--record"], "--record, --sarif, --output and --durations are about a PACKAGE"),
        (["ft-tiny", "--output", "x"], "--output goes with --json or --sarif"),
        (["ft-tiny", "--json", "--sarif"], "not allowed with argument"),
    ],
)
def test_wrong_use_is_told(package, checks, capsys, words, said):
    checks(*ALL, made("runs-two", passes, tier="stable"), made("backend-x", passes, about="backend"))
    code = main(["check", *words])
    assert said in capsys.readouterr().err
    assert code == (0 if not said else 4 if words == ["ft-tinny"] else 2)


def test_only_chooses_by_the_beginning_of_ids(package, checks, capsys):
    checks(*ALL)
    assert main(["check", "ft-tiny", "--only", "loss-r", "--only", "meta"]) == 0
    assert "2 checks: 2 passed" in capsys.readouterr().out


# ---------------------------------------------------------------- the record


def shown(capsys) -> str:
    """What `ft-host plugins show` says of the record, without the spaces."""
    catalog.cache_clear()
    assert main(["plugins", "show", "ft-tiny"]) == 0
    found = re.search(r"^  conformance +(.*)$", capsys.readouterr().out, re.MULTILINE)
    return found[1] if found else ""


def test_a_record_is_shown_without_importing_the_package(package, checks, capsys, monkeypatch):
    declares, folder = package
    declares(loss_coupled="coupled")
    checks(*(check for check in ALL if check.id != "loss-wrong"))
    assert shown(capsys) == ""
    assert main(["check", "ft-tiny", "--record"]) == 0
    assert f"recorded in {folder / 'conformance.json'}" in capsys.readouterr().out
    written = json.loads((folder / "conformance.json").read_text(encoding="utf-8"))
    assert all("seconds" not in check for check in written["checks"])  # else no two records were the same
    (folder / "method.py").write_text("raise ImportError('imported')", encoding="utf-8")
    versions = written["versions"]["ft-host"], written["date"]
    said = "experimental 2/3, 1 declared (recorded for 0.2.0 with ft-host {} on {})".format(*versions)
    assert shown(capsys) == said
    assert main(["plugins", "show", "ft-tiny", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["plugins"]
    assert entry["conformance"] == {
        "tier": "experimental",
        "passed": 2,
        "declared": 1,
        "left_out": 1,
        "version": "0.2.0",
        "host": versions[0],
        "date": versions[1],
        "problem": "",
    }


def test_a_record_of_another_version_or_package_is_told(package, checks, capsys):
    _, folder = package
    checks(ALL[0])
    assert main(["check", "ft-tiny", "--record"]) == 0
    capsys.readouterr()
    file = folder / "conformance.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    for change, said in (
        ({"version": "0.1.0"}, "experimental 1/1 (recorded for another version, 0.1.0, not for 0.2.0 with ft-host"),
        ({"package": "ft-other"}, "conformance.json is of ft-other, and this is ft-tiny"),
        ({"format": 2}, "conformance.json has format 2, and this ft-host reads 1"),
        ({"checks": None}, "conformance.json can't be read: TypeError"),
    ):
        file.write_text(json.dumps(written | change), encoding="utf-8")
        assert said in shown(capsys)
    file.write_text("{", encoding="utf-8")
    assert "can't be read: JSONDecodeError" in shown(capsys)


def test_nothing_is_recorded_where_a_check_fails_and_what_was_made_for_it_goes(package, checks, capsys, monkeypatch):
    _, folder = package
    monkeypatch.setitem(recording.FILES, "golden.json", lambda suite: {"loss": [1.0]})
    monkeypatch.setitem(recording.FILES, "none.json", lambda suite: None)
    checks(ALL[0], ALL[2])
    assert main(["check", "ft-tiny", "--record"]) == NOT_MET
    assert "nothing is recorded, since a check failed" in capsys.readouterr().out
    assert not list(folder.glob("*.json"))
    checks(ALL[0])
    assert main(["check", "ft-tiny", "--record"]) == 0
    assert sorted(file.name for file in folder.glob("*.json")) == ["conformance.json", "golden.json"]
    # what is there stays: it is what checks compare with
    monkeypatch.setitem(recording.FILES, "golden.json", lambda suite: {"loss": [2.0]})
    assert main(["check", "ft-tiny", "--record"]) == 0
    assert json.loads((folder / "golden.json").read_text(encoding="utf-8")) == {"loss": [1.0]}
    checks(made("meta-name", fails, about="package"))
    assert main(["check", "ft-tiny", "--record"]) == NOT_MET
    assert sorted(file.name for file in folder.glob("*.json")) == ["conformance.json", "golden.json"]


def test_a_package_that_fails_while_its_record_is_begun_is_told(package, checks, capsys, monkeypatch):
    monkeypatch.setitem(recording.FILES, "first.json", lambda suite: {"loss": [1.0]})
    monkeypatch.setitem(recording.FILES, "golden.json", lambda suite: load(suite.plugins[0]).ft_loss([]))
    checks(ALL[0])
    assert main(["check", "ft-tiny", "--record"]) == 2
    said = capsys.readouterr().err
    assert "golden.json can't be made: ZeroDivisionError" in said and "Without --record, checks say" in said
    assert not list(package[1].glob("*.json"))


def test_what_a_package_prints_when_it_is_imported_is_not_shown_either(package, checks, capfd):
    (package[1] / "config.py").write_text("print('hello')\n" + CONFIG, encoding="utf-8")
    checks(ALL[1], made("rollouts-whole", passes, about="rollouts"))
    assert main(["check", "ft-tiny", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["package"] == "ft-tiny"


def test_a_package_that_cannot_be_written_is_refused_before_it_is_asked(package, checks, capsys, monkeypatch):
    def asked(subject):
        raise AssertionError("asked")

    checks(made("meta-name", asked, about="package"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package[1])
    assert main(["check", "ft-tiny", "--record"]) == 2
    assert f"can't write to {package[1]}; install the package editable" in capsys.readouterr().err


def test_a_check_knows_that_a_record_is_being_made(package, checks, capsys):
    def needs_a_record(subject):
        if subject.recording:
            raise DoesNotApply("being recorded")
        if recorded(subject.plugin) is None:
            raise NotMet("no record")

    checks(made("meta-record", needs_a_record, about="package"))
    assert main(["check", "ft-tiny"]) == NOT_MET
    assert main(["check", "ft-tiny", "--record"]) == 0
    assert main(["check", "ft-tiny"]) == 0


def test_a_method_in_one_file_is_asked_what_there_is_to_ask_and_not_recorded(checks, capsys, tmp_path):
    file = tmp_path / "my_loss.py"
    file.write_text(CONFIG + METHOD, encoding="utf-8")
    checks(*ALL[:2])
    assert main(["check", str(file)]) == 0
    assert "passed    loss-right" in capsys.readouterr().out
    assert main(["check", str(file), "--record"]) == 2
    assert "a file can't carry a record; `ft-host new` makes one" in capsys.readouterr().err


# ---------------------------------------------------------------- around a check


def test_a_check_has_a_cache_of_the_suite_and_one_thread_and_both_are_put_back(package, checks, monkeypatch):
    import torch

    seen = {}

    def looks(subject):
        seen.update(cache=os.environ["FT_HOST_CACHE"], threads=torch.get_num_threads())
        os.environ["LEFT_BY_A_CHECK"] = "1"

    monkeypatch.setenv("FT_HOST_CACHE", "mine")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    checks(made("meta-around", looks, about="package"))
    assert main(["check", "ft-tiny"]) == 0
    assert seen["cache"].endswith("/cache") and seen["cache"] != "mine" and numbers == [1, 7]
    assert os.environ["FT_HOST_CACHE"] == "mine" and "LEFT_BY_A_CHECK" not in os.environ


# ---------------------------------------------------------------- as pytest's items

THREE_LINES = """\
from ft_host.testing import conformance_tests

test_conformance = conformance_tests("{}")
"""


class Heard:
    """How each item ended."""

    def __init__(self):
        self.ended, self.texts = {}, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            name = report.nodeid.partition("[")[2].rstrip("]")
            self.ended[name] = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            self.texts[name] = getattr(report, "wasxfail", "") or str(report.longrepr)


def test_each_check_is_an_item(package, checks, tmp_path):
    package[0](loss_coupled="coupled (eq. 7)", loss_pretended="it can't")
    checks(*ALL, made("loss-pretended", passes), made("loss-odd", goes_wrong))
    file = tmp_path / "test_of_a_package.py"
    file.write_text(THREE_LINES.format("ft-tiny"), encoding="utf-8")
    heard = Heard()
    words = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path), str(file)]
    globals_of_blame = run.blamed.__globals__
    before, globals_of_blame["SUITE"] = globals_of_blame["SUITE"], Path(__file__).parent
    try:
        assert pytest.main(words, plugins=[heard]) == pytest.ExitCode.TESTS_FAILED
    finally:
        globals_of_blame["SUITE"] = before
    assert heard.ended == {
        "meta-name-method-tiny": "passed",
        "loss-right-method-tiny": "passed",
        "loss-wrong-method-tiny": "failed",
        "loss-coupled-method-tiny": "xfailed",
        "rules-quiet-method-tiny": "skipped",
        "loss-pretended-method-tiny": "failed",
        "loss-odd-method-tiny": "failed",
    }
    assert heard.texts["loss-wrong-method-tiny"].endswith("loss-wrong: the loss is 0.25, expected 0.5\nMend it so.")
    assert "coupled (eq. 7)" in heard.texts["loss-coupled-method-tiny"]
    assert 'return {}["no such key"]' in heard.texts["loss-odd-method-tiny"]  # the traceback


@pytest.mark.slow
def test_a_file_of_three_lines_is_the_suite(tmp_path):
    file = tmp_path / "test_conformance.py"
    file.write_text(THREE_LINES.format("ft-sft"), encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-k", "loss-finite", str(file)]
    said = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ).stdout
    assert "PASSED test_conformance.py::test_conformance[loss-finite-method-sft]" in said and "1 passed" in said, said


# ---------------------------------------------------------------- rows for a method that names no format

PAIRS = """\
from dataclasses import dataclass
from ft_host.api import RowError, RunConfig, hookimpl

@dataclass(kw_only=True)
class Config(RunConfig):
    pass

@hookimpl
def ft_prepare(row, tokenizer):
    if not row["chosen"].strip():
        raise RowError("chosen is empty")
    return {"ids": tokenizer(row["chosen"])["input_ids"], "length": 1}

@hookimpl
def ft_collate(rows):
    raise NotImplementedError

@hookimpl
def ft_loss(batch):
    raise NotImplementedError
"""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("preference",)),
        ({'"chosen"': '"completion"'}, ("prompt-completion",)),
        ({'"chosen"': '"no such column"'}, ("language modeling",)),  # the checks show its error
        ({"    pass": '    formats = ("unpaired preference",)'}, ("unpaired preference",)),
    ],
)
def test_a_method_that_names_no_format_gets_rows_that_it_takes(tmp_path, change, expected):
    text = PAIRS
    for old, new in change.items():
        text = text.replace(old, new)
    file = tmp_path / f"pairs_{len(text)}.py"  # hooks are kept by the name of their module
    file.write_text(text, encoding="utf-8")
    suite = run.Suite(str(file), tmp_path / "suite")
    subject = suite.subject("formats", suite.plugins[0])
    assert subject.formats == expected


def test_the_host_is_asked_about_its_backend_and_not_as_a_package(tmp_path, checks):
    checks(made("meta-name", passes, about="package"), made("backend-noise", passes, about="backend"))
    suite = run.Suite("ft-host", tmp_path)
    assert [(check.id, info.name) for check, info in suite.items(run.CHECKS.values())] == [
        ("backend-noise", "transformers")
    ]
