"""The bounds of pyproject.toml.

python .ci/bounds.py            the lowest versions, as constraints for pip
python .ci/bounds.py lowest     whether this environment has just those
python .ci/bounds.py newest     whether it has none below those of constraints.txt
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def lowest() -> dict[str, Version]:
    """The lowest version of each dependency of the host. Raises ValueError for one without a lower bound alone."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for each in map(Requirement, project["dependencies"]):
        bounds = list(each.specifier)
        if [bound.operator for bound in bounds] != [">="]:
            raise ValueError(f"pyproject.toml: {each}: expected a lower bound, such as {each.name}>=1.0")
        found[each.name] = Version(bounds[0].version)
    return found


def pinned() -> dict[str, Version]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: Version(number) for name, number in named}


def faults(which: str, installed: Mapping[str, Version]) -> list[str]:
    """What makes an environment another one than the lowest or the newest, a line each. The local part of a version
    (torch 2.9.0+cpu) doesn't matter."""
    out = []
    for name, least in lowest().items():
        found = Version(installed[name].public)
        if which == "lowest" and found != least:
            out.append(f"{name} {found}: expected {least}, the lowest of pyproject.toml")
        if which == "newest" and found < pinned()[name]:
            out.append(f"{name} {found}: expected {pinned()[name]} or newer, as in constraints.txt")
    return out


def main(words: list[str]) -> int:
    if not words:
        print("\n".join(f"{name}=={number}" for name, number in lowest().items()))
        return 0
    installed = {name: Version(version(name)) for name in lowest()}
    print(f"python {sys.version.split()[0]}, " + ", ".join(f"{name} {number}" for name, number in installed.items()))
    found = faults(words[0], installed)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
