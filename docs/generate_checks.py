"""Writes docs/checks/ from the checks themselves, and from the wrong packages of their tests:
python docs/generate_checks.py"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from ft_host.testing.conformance.check import Check, group_of
from ft_host.testing.conformance.checks import CHECKS
from ft_host.testing.conformance.pages import ASKED, page

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "checks"
HEAD = """\
# Checks

<!-- Written by docs/generate_checks.py from the checks and their tests; change them there. -->

What `ft-host check` asks of a package: {count} checks, {experimental} of them of the experimental tier. The stable
tier has all. `ft-host check --list` lists them, `ft-host check --explain CHECK` prints a page. [check.md](../check.md)
says how to ask them, and what a package does about one that it can't meet.
"""
WRONG = """\
## What each has caught

Packages of the tests that are wrong in one way each: the check that must fail is named, and of its group no other may,
unless it sees the same mistake.

| what is wrong | caught by |
| --- | --- |
"""


def wrong() -> dict[str, list[str]]:
    """What is wrong with the packages of tests/conformance (their lists WRONG, and CAUGHT of tests with other
    packages), by the check that must fail."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests" / "conformance").glob("test_*.py")):
        if re.search(r"^(WRONG|CAUGHT)\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            said = vars(importlib.import_module(f"conformance.{file.stem}"))
            for each in said.get("WRONG", []):
                found.setdefault(each.fails, []).append(each.name)
            for id, names in said.get("CAUGHT", {}).items():
                found.setdefault(id, []).extend(names)
    return found


def generate() -> dict[str, str]:
    """The text of each file of docs/checks/, by its name."""
    caught = wrong()
    pages = {f"{check.id}.md": page(check, caught.get(check.id)) for check in CHECKS.values()}
    return pages | {"README.md": index(caught)}


def index(caught: dict[str, list[str]]) -> str:
    groups: dict[str, list[Check]] = {}
    for check in CHECKS.values():
        groups.setdefault(group_of(check), []).append(check)
    experimental = sum(check.tier == "experimental" for check in CHECKS.values())
    parts = [HEAD.format(count=len(CHECKS), experimental=experimental)]
    parts += [table(group, checks) for group, checks in groups.items()]
    rows = [f"| {name} | [{id}]({id}.md) |" for id in CHECKS for name in caught.get(id, [])]
    return "\n".join([*parts, WRONG + "\n".join(rows) + "\n"])


def table(group: str, checks: list[Check]) -> str:
    about = importlib.import_module(checks[0].test.__module__).__doc__.partition("\n\n")[0].replace("\n", " ")
    lines = [f"## {group.capitalize()}", "", about, "", "| check | holds | tier | asked |", "| --- | --- | --- | --- |"]
    lines += [f"| [{each.id}]({each.id}.md) | {each.title} | {each.tier} | {ASKED[each.about]} |" for each in checks]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Pages of checks that aren't there any more are deleted."""
    FOLDER.mkdir(exist_ok=True)
    texts = generate()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    for file in FOLDER.glob("*.md"):
        if file.name not in texts:
            file.unlink()


if __name__ == "__main__":
    write()
    print(f"wrote {FOLDER}", file=sys.stderr)
