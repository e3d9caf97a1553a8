"""Packages that are wrong in one way each: what `ft-host new` writes, with one change, and the check that must fail."""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_host.registry import catalog
from ft_host.scaffold import new_package
from ft_host.testing.conformance.check import FAILED, Check, Outcome
from ft_host.testing.conformance.run import Suite
from ft_host.testing.distributions import make_distribution


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A package of a kind of `ft-host new` in which `old` in `file` is `new`, and so for each pair of `more`; `$name`
    and `$package` in them are those of the package.

    `fails`: the check that must fail. `also`: others that see the same mistake; no other may fail.
    """

    name: str  # of the mistake, in words
    kind: str = "offline"
    file: str = "method.py"  # within the package, or conformance.toml, pyproject.toml, README.md
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()
    fails: str
    also: tuple[str, ...] = ()


NUMBERS = itertools.count(1)  # the hooks of a plugin are kept by its name while a process lasts


@contextmanager
def installed(kind: str, folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Iterator[str]:
    """Install what `ft-host new NAME --kind KIND` writes, with its files changed, while the context lasts. Gives the
    name, another one at each call."""
    name = f"slip-{next(NUMBERS)}"
    made = new_package(name, kind, folder / "new")
    files = {
        file.relative_to(made).as_posix(): file.read_text(encoding="utf-8")
        for file in made.rglob("*")
        if file.is_file()
    }
    files = change(files)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    site = folder / "site"
    [package] = {path.partition("/")[0] for path in files if path.endswith("/__init__.py")}
    modules = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): text
        for path, text in files.items()
        if path.startswith(f"{package}/") and path.endswith(".py")
    }
    make_distribution(
        site,
        project["name"],
        project["version"],
        entry_points=project.get("entry-points", {}),
        modules=modules,
        requires=project["dependencies"],
        classifiers=project["classifiers"],
        summary=project.get("description", ""),
        headers=headers_of(project),
        description=files["README.md"],
    )
    for path, text in files.items():  # data of the package, and its sources beside it, as `pip install -e` has them
        if not (path.startswith(f"{package}/") and path.endswith(".py")):
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(site))
    catalog.cache_clear()
    try:
        yield name
    finally:
        sys.path.remove(str(site))
        for module in [name for name in sys.modules if re.match(rf"{package}(\.|$)", name)]:
            del sys.modules[module]
        catalog.cache_clear()


def headers_of(project: dict[str, Any]) -> list[str]:
    """What setuptools writes of a pyproject.toml into METADATA, beside name, version and what it requires."""
    found = [f"License-Expression: {project['license']}"] if "license" in project else []
    found += [f"Author: {each['name']}" for each in project.get("authors", ()) if "name" in each]
    found += [f"Maintainer: {each['name']}" for each in project.get("maintainers", ()) if "name" in each]
    return found + [f"Project-URL: {name}, {url}" for name, url in project.get("urls", {}).items()]


def changed(wrong: Wrong) -> Callable[[dict[str, str]], dict[str, str]]:
    def change(files: dict[str, str]) -> dict[str, str]:
        [path] = [path for path in files if path == wrong.file or re.fullmatch(rf"ft_\w+/{wrong.file}", path)]
        [package] = {path.partition("/")[0] for path in files if path.endswith("/__init__.py")}
        names = {"$name": package.removeprefix("ft_").replace("_", "-"), "$package": package}
        text = files[path]
        for pair in ((wrong.old, wrong.new), *wrong.more):
            old, new = (named(each, names) for each in pair)
            assert text.count(old) == 1, f"{wrong.name}: {path} has {old!r} not once"
            text = text.replace(old, new)
        return files | {path: text}

    return change


def named(text: str, names: dict[str, str]) -> str:
    for word, name in names.items():
        text = text.replace(word, name)
    return text


def failures(checks: list[Check], wrong: Wrong | None, kind: str, folder: Path) -> list[Outcome]:
    """What fails of a package of a kind: of the wrong one, or of one that is as it should be."""
    with installed(kind, folder, changed(wrong) if wrong else lambda files: files):
        here = str(folder / "site")
        [name] = {info.distribution for info in catalog() if info.location.startswith(here)}
        return [each for each in Suite(name, folder / "suite").run(checks) if each.result == FAILED]


def assert_caught(checks: list[Check], wrong: Wrong, folder: Path) -> None:
    """The check fails, and of `checks` no other that isn't named."""
    found = failures(checks, wrong, wrong.kind, folder)
    said = "\n".join(f"{each.name}: {each.said}" for each in found)
    assert wrong.fails in {each.check.id for each in found}, f"{wrong.name}: not caught\n{said}"
    assert {each.check.id for each in found} <= {wrong.fails, *wrong.also}, f"{wrong.name}:\n{said}"
