"""What a package imports from the doors is in the lowest host that it declares. `.ci/ends` runs its methods there."""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from ft_host._version import __version__
from ft_host.surface.host import DOORS, door_of

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(ROOT.glob("plugins/*/pyproject.toml"))


def needed(project: Path) -> Requirement:
    found = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return next(each for each in map(Requirement, found) if each.name == "ft-host")


def lowest(project: Path) -> Version:
    return next(Version(each.version) for each in needed(project).specifier if each.operator == ">=")


def imported(package: Path) -> Iterator[tuple[str, str]]:
    """Door and name of each import of the host, within functions too."""
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in DOORS:
                yield from ((node.module, each.name) for each in node.names)


def offered(version: Version) -> dict[str, set[str]]:
    """The names of each door in a host: this one's, or those of a release by its contract."""
    if version.release[:2] == Version(__version__).release[:2]:
        return {door: set(door_of(door)) for door in DOORS}
    [file] = ROOT.glob(f"contracts/ft-host-{version.major}.{version.minor}.*.json")
    return {door: set(names) for door, names in json.loads(file.read_text(encoding="utf-8"))["doors"].items()}


@pytest.mark.parametrize("project", PACKAGES, ids=lambda project: project.parent.name)
def test_the_lowest_host_has_what_is_imported(project):
    [package] = [file.parent for file in project.parent.glob("ft_*/__init__.py")]
    names, version = list(imported(package)), lowest(project)
    doors = offered(version)
    lacking = sorted({f"{door}.{name}" for door, name in names if name not in doors[door]})
    assert names and not lacking, f"ft-host {version} has no {', '.join(lacking)}: raise the lower bound"


@pytest.mark.parametrize("project", PACKAGES, ids=lambda project: project.parent.name)
def test_this_host_is_in_the_range_and_the_commit_of_the_lowest_is_known(project):
    assert Version(__version__) in needed(project).specifier
    known = [line.split()[0] for line in (ROOT / ".ci" / "hosts").read_text().splitlines() if not line.startswith("#")]
    version = lowest(project)
    assert any(Version(each).release[:2] == version.release[:2] for each in [*known, __version__]), version
