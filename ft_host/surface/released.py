"""The contract of the last release of a package: a file, a wheel, `contracts/` of its repository, or its own data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from ft_host.errors import PluginBroken, UsageError
from ft_host.registry.metadata import normalise
from ft_host.surface.compare import version_key
from ft_host.surface.shapes import FORMAT

FILE = "contract.json"  # in the package, as package data
KEPT = "contracts"  # in the repository: NAME-VERSION.json, one a release
DEPTH = 4  # folders above the package in which the repository is looked for


def given_contract(file: Path, distribution: str) -> dict[str, Any]:
    """Return the contract in a file, or in a wheel. Raises UsageError where it is none, or that of another package."""
    try:
        text = in_wheel(file) if file.suffix == ".whl" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--against: can't read {file}: {error.strerror}") from error
    except zipfile.BadZipFile as error:
        raise UsageError(f"--against: {file} is no wheel: {error}") from error
    problem, found = contract_in(text, distribution)
    if found is None:
        raise UsageError(f"--against: {file} {problem}")
    return found


def in_wheel(file: Path) -> str:
    """Return the contract that a wheel carries. Raises UsageError where it carries none."""
    with zipfile.ZipFile(file) as wheel:
        names = [name for name in wheel.namelist() if name.count("/") == 1 and name.endswith(f"/{FILE}")]
        if not names:
            raise UsageError(f"--against: {file} carries no {FILE}: ft-host contract PACKAGE --record writes it")
        return wheel.read(names[0]).decode("utf-8")


def contract_in(text: str, distribution: str) -> tuple[str, dict[str, Any] | None]:
    """Return what is wrong with the text of a contract, or the contract."""
    try:
        found = json.loads(text)
    except ValueError as error:
        return f"is no JSON: {error}", None
    if not isinstance(found, dict) or "distribution" not in found:
        return f"is no contract, as `ft-host contract {distribution}` prints it", None
    if normalise(found["distribution"]) != normalise(distribution):
        return f"is the contract of {found['distribution']}, and this is {distribution}", None
    if found.get("format") != FORMAT:
        return f"has format {found.get('format')}, and this ft-host reads {FORMAT}", None
    return "", found


def last_contract(distribution: str, version: str, package: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """Return the contract of the last release, and its file: of those in `contracts/` of the repository the newest that
    isn't newer than `version`, else what the package carries. None where there is none. `package`: the folder of its
    modules. Raises PluginBroken for a file that is none."""
    if package is None:
        return None
    kept = [file for folder in package.resolve().parents[:DEPTH] for file in of_repository(folder, distribution)]
    before = [file for file in kept if version_key(version_of(file)) <= version_key(version)]
    files = [max(before or kept, key=lambda file: version_key(version_of(file)))] if kept else []
    files += [package / FILE] if (package / FILE).is_file() else []
    if not files:
        return None
    problem, found = contract_in(files[0].read_text(encoding="utf-8"), distribution)
    if found is None:
        raise PluginBroken(f"{files[0]} {problem}")
    return files[0], found


def of_repository(folder: Path, distribution: str) -> list[Path]:
    name = normalise(distribution)
    return [
        file
        for file in sorted((folder / KEPT).glob("*.json"))
        if file.stem.rpartition("-")[0] == name and version_of(file)
    ]


def version_of(file: Path) -> str:
    """1.2.0 of ft-x-1.2.0.json."""
    return file.stem.rpartition("-")[2]


def changelog_of(package: Path | None) -> str | None:
    """Return the text of the changelog in the project of a package; None where it isn't there, as for a wheel that is
    installed."""
    for folder in package.resolve().parents[:2] if package else ():
        if (folder / "pyproject.toml").is_file() and (folder / "CHANGELOG.md").is_file():
            return (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    return None
