"""Where the contract of the last release is found, and how one is recorded."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import ft_host
from ft_host import registry
from ft_host.cli import contract as command
from ft_host.cli import main
from ft_host.cli.contract import commands
from ft_host.errors import FtHostError, PluginBroken, UsageError
from ft_host.surface import host_surface, package_surface
from ft_host.surface.released import FILE, changelog_of, given_contract, last_contract

ROOT = Path(__file__).parents[1]
OURS = sorted({info.distribution for info in registry.catalog() if ROOT in Path(info.location).resolve().parents})


def text_of(version: str, name: str = "ft-x", **more) -> str:
    return json.dumps({"format": 1, "distribution": name, "version": version, "stability": "stable"} | more)


@pytest.fixture
def project(tmp_path):
    """A package in its repository."""
    (tmp_path / "contracts").mkdir()
    package = tmp_path / "plugins" / "ft-x" / "ft_x"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").touch()
    return package


def test_of_those_in_the_repository_the_newest_that_is_not_newer(project):
    kept = project.parents[2] / "contracts"
    for version in ("1.2.0", "1.10.0", "1.9.3", "2.0.0"):
        (kept / f"ft-x-{version}.json").write_text(text_of(version))
    (kept / "ft-x-more-1.9.9.json").write_text(text_of("1.9.9", "ft-x-more"))
    (project / FILE).write_text(text_of("1.1.0"))
    for version, found in (("1.10.2", "1.10.0"), ("1.9.9", "1.9.3"), ("2.0.0", "2.0.0"), ("1.0.0", "2.0.0")):
        place, old = last_contract("ft-x", version, project)
        assert old["version"] == found and place.name == f"ft-x-{found}.json"


def test_else_what_the_package_carries_and_else_none(project):
    assert last_contract("ft-x", "1.2.0", project) is None and last_contract("ft-x", "1.2.0", None) is None
    (project / FILE).write_text(text_of("1.1.0"))
    assert last_contract("Ft_X", "1.2.0", project) == (project / FILE, json.loads(text_of("1.1.0")))
    (project / FILE).write_text(text_of("1.1.0", "ft-y"))
    with pytest.raises(PluginBroken, match="contract.json is the contract of ft-y, and this is ft-x"):
        last_contract("ft-x", "1.2.0", project)


def test_a_wheel_carries_one(tmp_path):
    with zipfile.ZipFile(tmp_path / "ft_x-1.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ft_x/contract.json", text_of("1.0.0"))
        wheel.writestr("ft_x-1.0.0.dist-info/METADATA", "")
    with zipfile.ZipFile(tmp_path / "bare.whl", "w") as wheel:
        wheel.writestr("ft_x/__init__.py", "")
    (tmp_path / "odd.whl").write_text("no archive")
    assert given_contract(tmp_path / "ft_x-1.0.0-py3-none-any.whl", "ft-x")["version"] == "1.0.0"
    for name, said in (("bare", "carries no contract.json"), ("odd", "is no wheel"), ("none", "can't read")):
        with pytest.raises(UsageError, match=said):
            given_contract(tmp_path / f"{name}.whl", "ft-x")


def test_a_changelog_is_that_of_the_project(project):
    assert changelog_of(project) is None and changelog_of(None) is None
    (project.parent / "CHANGELOG.md").write_text("## 1.0.0\n")
    assert changelog_of(project) == "## 1.0.0\n"
    (project.parent / "pyproject.toml").unlink()  # as where wheels are installed
    assert changelog_of(project) is None


def test_a_contract_is_recorded_where_it_keeps_the_last_one(project, monkeypatch, capsys):
    monkeypatch.setattr(command, "package_of", lambda name: project)
    monkeypatch.setattr(command, "surface_of", lambda name: surface)
    surface = json.loads(text_of("1.0.0", method={"x": {"metrics": ["a", "b"]}}))
    assert main(["contract", "ft-x", "--record"]) == 0
    assert capsys.readouterr().out == f"{project / FILE}\n" and json.loads((project / FILE).read_text()) == surface
    surface = json.loads(text_of("1.1.0", method={"x": {"metrics": ["a"]}}))
    with pytest.raises(FtHostError, match="nothing was written: ft-x 1.1.0 breaks .* for 1.0.0"):
        command.record(surface)
    assert main(["contract", "ft-x", "--record"]) != 0
    assert "method/x/metrics/b: is gone; that asks for version 2.0.0" in capsys.readouterr().err
    assert json.loads((project / FILE).read_text())["version"] == "1.0.0"
    surface["version"] = "2.0.0"
    assert main(["contract", "ft-x", "--record"]) == 0
    assert main(["contract", "ft-x", "--record", "--against", "x.json"]) == 2


@pytest.mark.parametrize("distribution", OURS)
def test_what_our_packages_carry_is_current(distribution):
    """Raise the version where it has to be raised, then run .ci/contracts."""
    if distribution == "ft-host":
        file, now = Path(ft_host.__file__).parent / FILE, host_surface(commands())
    else:
        file, now = command.package_of(distribution) / FILE, package_surface(distribution)
    assert json.loads(file.read_text(encoding="utf-8")) == now, f"ft-host contract {distribution} --record"
