"""What a stable tag must have earned: a package that lacks one thing is caught, and one that has all passes."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from conformance.wrong import Wrong, changed, installed

from ft_host.errors import PluginBroken
from ft_host.registry import catalog
from ft_host.registry.catalog import PluginInfo
from ft_host.registry.conformance import recorded
from ft_host.registry.metadata import stability_of
from ft_host.surface import package_surface
from ft_host.testing.conformance.check import FAILED, LEFT_OUT, PASSED, Outcome
from ft_host.testing.conformance.checks import maturity
from ft_host.testing.conformance.declared import declared
from ft_host.testing.conformance.run import Suite

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT, DECLARED, README = {"file": "pyproject.toml"}, {"file": "conformance.toml"}, {"file": "README.md"}
CHANGELOG, RECORD = {"file": "CHANGELOG.md"}, {"file": "conformance.json"}
EVIDENCE = """
[evidence]
parity = "tests/test_parity.py"
docs = "README.md"
data = "GSM8K"
"""
WRONG = [
    Wrong(**DECLARED, name="no word on parity", old='parity = "tests/test_parity.py"\n', new="", fails="stable-parity"),
    Wrong(
        **DECLARED,
        name="parity in a file that isn't there",
        old="tests/test_parity",
        new="tests/test_trl",
        fails="stable-parity",
    ),
    Wrong(
        file="tests/test_parity.py",
        name="parity without a test",
        old="def test_",
        new="def look_at_",
        fails="stable-parity",
    ),
    Wrong(
        **DECLARED,
        name="no parity and no reason",
        old='parity = "tests/test_parity.py"',
        new='no_parity = "none"',
        fails="stable-parity",
    ),
    Wrong(**DECLARED, name="no page with a run", old='docs = "README.md"\n', new="", fails="stable-docs"),
    Wrong(
        **DECLARED,
        name="a page that isn't there",
        old='docs = "README.md"',
        new='docs = "docs/page.md"',
        fails="stable-docs",
        also=("stable-documented",),
    ),
    Wrong(**DECLARED, name="a run on made-up data", old='data = "GSM8K"\n', new="", fails="stable-docs"),
    Wrong(**README, name="a page without the name of its data", old="On GSM8K", new="On our data", fails="stable-docs"),
    Wrong(**README, name="a run without its curve", old="![curve](curve.svg)", new="", fails="stable-docs"),
    Wrong(
        **README,
        name="a curve that isn't there",
        old="![curve](curve.svg)",
        new="![curve](curves.svg)",
        fails="stable-docs",
    ),
    Wrong(
        **DECLARED,
        name="a curve that the page doesn't show",
        old='data = "GSM8K"',
        new='data = "GSM8K"\ncurve = "other.svg"',
        fails="stable-docs",
    ),
    Wrong(**README, name="a field without a line", old="`length_power`", new="`length`", fails="stable-documented"),
    Wrong(
        **README,
        name="a metric without a line",
        old="`mean_token_accuracy`",
        new="`eval_mean_token_accuracy`",
        fails="stable-documented",
    ),
    Wrong(**PROJECT, name="nobody's", old='maintainers = [{name = "A. Person"}]\n', new="", fails="stable-maintainer"),
    Wrong(
        **CHANGELOG, name="a changelog without this version", old="## 1.0.0", new="## 0.9.0", fails="stable-changelog"
    ),
    Wrong(**CHANGELOG, name="a version without an entry", old="- ", new="", fails="stable-changelog"),
    Wrong(
        **PROJECT,
        name="a dependency that is experimental",
        old='dependencies = ["ft-host',
        new='dependencies = ["ft-ppo>=0.1", "ft-host',
        fails="stable-dependencies",
    ),
    Wrong(
        **DECLARED,
        name="three exceptions",
        old="[not_met]",
        new='[not_met]\nloss-finite = "never"\nloss-bf16 = "not on this"\nmetadata-names = "it is called otherwise"',
        fails="stable-declared",
    ),
    Wrong(
        file="config.py",
        name="another default than in the last release",
        old="        1.0,\n",
        new="        0.5,\n",
        fails="stable-contract",
    ),
    Wrong(
        **RECORD,
        name="a record of the experimental tier",
        old='"tier": "stable"',
        new='"tier": "experimental"',
        fails="stable-record",
    ),
    Wrong(
        **RECORD,
        name="a record of an older version",
        old='"version": "1.0.0"',
        new='"version": "0.9.0"',
        fails="stable-record",
    ),
]


def earned(files: dict[str, str]) -> dict[str, str]:
    """A package of `ft-host new` that has all that a stable tag asks for."""
    [package] = {path.partition("/")[0] for path in files if path.endswith("/__init__.py")}
    project = files["pyproject.toml"].replace("3 - Alpha", "5 - Production/Stable")
    project = project.replace('version = "0.1.0"', 'version = "1.0.0"\nmaintainers = [{name = "A. Person"}]')
    readme = "\n\nOn GSM8K, with `length_power` 1, `mean_token_accuracy` rises:\n\n![curve](curve.svg)\n"
    own = f"{package}/conformance.toml"
    return files | {
        "pyproject.toml": project,
        "README.md": files["README.md"] + readme,
        "CHANGELOG.md": "# Changes\n\n## 1.0.0\n\n- Stable.\n\n## 0.9.0\n\nThe first version.\n",
        "curve.svg": "<svg/>",
        "tests/test_parity.py": "def test_parity():\n    assert 1 + 1 == 2\n",
        own: f"[not_met]\n{EVIDENCE}",
        f"{package}/conformance.json": json.dumps(record(package.replace("_", "-"))),
    }


@pytest.fixture
def stable_host(monkeypatch):
    """The host as it is from 1.0 on, whatever this one is."""
    every = catalog.__wrapped__

    def found():
        return [replace(info, stability="stable") if info.distribution == "ft-host" else info for info in every()]

    monkeypatch.setattr(maturity, "catalog", found)


def outcomes(wrong: Wrong | None, folder: Path, recording: bool = False) -> list[Outcome]:
    """How the checks end of a package that has earned all, and was then made wrong; its last release was right."""

    def change(files: dict[str, str]) -> dict[str, str]:
        return changed(wrong)(earned(files)) if wrong else earned(files)

    with installed("offline", folder, change) as name:
        site = folder / "site"
        contract = package_surface(f"ft-{name}") | {"version": "0.9.0", "stability": "experimental"}
        contract["method"][name]["fields"]["length_power"]["default"] = 1.0
        (site / "contracts").mkdir()
        (site / "contracts" / f"ft-{name}-0.9.0.json").write_text(json.dumps(contract))
        return Suite(f"ft-{name}", folder / "suite", recording=recording).run(maturity.CHECKS)


def record(distribution: str, **changes) -> dict:
    """What `--record` writes, as far as it is read."""
    found = {
        "format": 1,
        "package": distribution,
        "version": "1.0.0",
        "tier": "stable",
        "checks": [{"result": "passed"}],
        "versions": {"ft-host": "1.0.0"},
        "date": "2026-11-29",
    }
    return found | changes


def failed(found: list[Outcome]) -> dict[str, str]:
    return {each.check.id: each.said for each in found if each.result == FAILED}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_what_is_lacking_is_told(wrong, tmp_path, stable_host):
    found = failed(outcomes(wrong, tmp_path))
    assert wrong.fails in found, f"{wrong.name}: not caught"
    assert set(found) <= {wrong.fails, *wrong.also}, found


def test_one_that_has_it_all_passes(tmp_path, stable_host):
    assert {each.check.id: each.result for each in outcomes(None, tmp_path)} == {
        check.id: PASSED for check in maturity.CHECKS
    }


def test_every_check_has_a_package_that_lacks_it():
    assert {check.id for check in maturity.CHECKS} == {wrong.fails for wrong in WRONG}


def test_while_it_is_recorded_there_is_no_record_to_ask_for(tmp_path, stable_host):
    found = {each.check.id: each.result for each in outcomes(None, tmp_path, recording=True)}
    assert found.pop("stable-record") == LEFT_OUT
    assert set(found.values()) == {PASSED}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"version": "0.9.0"}, "conformance.json is of version 0.9.0, and this is 1.0.0"),
        ({"tier": "experimental"}, "conformance.json is of the experimental tier; expected the stable one"),
        ({"format": 99}, "conformance.json has format 99"),
        ({"package": "ft-other"}, "conformance.json is of ft-other"),
    ],
)
def test_a_record_of_something_else(changes, said, tmp_path):
    place = tmp_path / "ft_x" / "method.py"
    place.parent.mkdir()
    (place.parent / "conformance.json").write_text(json.dumps(record("ft-x", **changes)))
    info = PluginInfo(kind="method", name="x", distribution="ft-x", value="ft_x.method", location=str(place))
    found = maturity.not_recorded(recorded(info), "1.0.0")
    assert found.startswith(said) and bool(found) == bool(said)


def test_no_record():
    assert maturity.not_recorded(None, "1.0.0") == "no conformance.json in the package"


def test_a_package_without_its_sources(tmp_path, stable_host):
    """What is in the wheel is looked at; the paths of the evidence aren't in it."""

    def change(files: dict[str, str]) -> dict[str, str]:
        return earned(files)

    with installed("offline", tmp_path, change) as name:
        (tmp_path / "site" / "pyproject.toml").unlink()
        found = Suite(f"ft-{name}", tmp_path / "suite").run(maturity.CHECKS)
    results = {each.check.id: each.result for each in found}
    assert {id for id, result in results.items() if result == LEFT_OUT} == {
        "stable-parity",
        "stable-docs",
        "stable-documented",
        "stable-changelog",
    }
    assert set(failed(found)) == {"stable-contract"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('partiy = "x"', "evidence: 'partiy'; did you mean parity?; expected parity, no_parity, docs, curve, data"),
        ("parity = 3", "evidence: parity: expected text, or a list of texts, found 3"),
        ('docs = ["a", "b"]', "evidence: docs: expected text, found ['a', 'b']"),
        ("data = true", "evidence: data: expected text, found True"),
    ],
)
def test_evidence_that_is_misspelt_is_refused(line, said, tmp_path):
    (tmp_path / "conformance.toml").write_text(f"[evidence]\n{line}\n")
    with pytest.raises(PluginBroken) as refused:
        declared(tmp_path, set(), set())
    assert str(refused.value) == f"{tmp_path / 'conformance.toml'}: {said}"


# ---------------------------------------------------------------- this repository


def stable_of(folder: Path) -> list[str]:
    """The projects in a folder that say that they are stable and haven't earned it, with the reason."""
    found = []
    for file in sorted(folder.glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        if stability_of(project["classifiers"], project["version"])[0] != "stable":
            continue
        package = project["name"].replace("-", "_")
        place = file.parent / package / "__init__.py"
        info = PluginInfo(kind="method", name="x", distribution=project["name"], value=package, location=str(place))
        problem = maturity.not_recorded(recorded(info), project["version"])
        found += [f"{project['name']}: {problem}"] if problem else []
    return found


def test_a_stable_tag_of_ours_is_earned():
    assert stable_of(ROOT / "plugins") == []


def test_a_stable_tag_that_isnt_earned_is_seen(tmp_path):
    package = tmp_path / "ft-x" / "ft_x"
    package.mkdir(parents=True)
    text = (
        '[project]\nname = "ft-x"\nversion = "1.0.0"\nclassifiers = ["Development Status :: 5 - Production/Stable"]\n'
    )
    (tmp_path / "ft-x" / "pyproject.toml").write_text(text)
    assert stable_of(tmp_path) == ["ft-x: no conformance.json in the package"]
    (package / "conformance.json").write_text(json.dumps(record("ft-x", tier="experimental")))
    assert stable_of(tmp_path) == ["ft-x: conformance.json is of the experimental tier; expected the stable one"]
    (package / "conformance.json").write_text(json.dumps(record("ft-x")))
    assert stable_of(tmp_path) == []
