"""The versions that the project says it runs with: bounds, the pinned set, docs/versions.md, and the check of
.ci/versions."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bounds():
    spec = importlib.util.spec_from_file_location("bounds", ROOT / ".ci" / "bounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pinned_set_is_within_the_bounds(bounds):
    pinned = bounds.pinned()
    assert {name for name, least in bounds.lowest().items() if pinned[name] < least} == set()
    tested = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = [each for each in map(Requirement, [*tested["test"], *tested["dev"]]) if each.name in pinned]
    assert len(named) > 5 and all(each.specifier.contains(pinned[each.name]) for each in named)


def test_the_page_has_the_bounds_and_the_pinned_set(bounds):
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| ([\w.-]+) \| ([\d.]+ \| [\d.]+) \|", page, re.MULTILINE))
    for name, least in bounds.lowest().items():
        low, tested = map(Version, told[name].split(" | "))
        assert (low, tested) == (least, bounds.pinned()[name]), name


def test_constraints_for_pip_are_the_lower_bounds(bounds, capsys):
    assert bounds.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{name}=={least}" for name, least in bounds.lowest().items()] and len(lines) > 8


def test_a_dependency_without_a_lower_bound_alone_is_refused(bounds, tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "ROOT", tmp_path)
    for other in ("torch", "torch>=2.9,<3", "torch==2.9", "torch~=2.9"):
        (tmp_path / "pyproject.toml").write_text(f'[project]\ndependencies = ["{other}"]\n', encoding="utf-8")
        with pytest.raises(ValueError, match="expected a lower bound, such as torch>=1.0"):
            bounds.lowest()


def test_an_environment_with_other_versions_is_not_taken(bounds):
    lowest = bounds.lowest()
    assert bounds.faults("lowest", lowest) == []
    assert bounds.faults("lowest", lowest | {"torch": Version(f"{lowest['torch']}+cpu")}) == []
    newer = lowest | {"torch": Version("99.1")}
    assert bounds.faults("lowest", newer) == [f"torch 99.1: expected {lowest['torch']}, the lowest of pyproject.toml"]
    pinned = bounds.pinned()
    assert bounds.faults("newest", pinned | {"torch": Version("99.1")}) == []
    [fault] = bounds.faults("newest", pinned | {"torch": Version("1.0")})
    assert fault == f"torch 1.0: expected {pinned['torch']} or newer, as in constraints.txt"
