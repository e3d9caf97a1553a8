"""Writes the index of packages, ft_host/registry/packages.toml, and its page, docs/packages.md: python
docs/generate_packages.py

Entries of packages in plugins/ are made from what is installed; those of others stay as they stand in the index.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from ft_host.registry import PluginInfo, catalog
from ft_host.registry.available import OURS, Checked, Listed, packages
from ft_host.registry.conformance import recorded
from ft_host.registry.metadata import normalise

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "ft_host" / "registry" / OURS
PAGE = ROOT / "docs" / "packages.md"
HEAD = """\
# Each [[package]] is one that pip can install. Entries of this repository's own are written by
# docs/generate_packages.py; add yours by hand, in any place. The keys are explained in ft_host/registry/available.py.
"""
TEXT = """\
# Packages

<!-- Written by docs/generate_packages.py from ft_host/registry/packages.toml; change that. -->

Methods, backends and diagnostics that have been published. `ft-host plugins --available` prints this list, with what is
installed here; `--available FILE` or an https address reads another one. The last check is the version with which
[`ft-host check`](check.md) last passed. To add yours, write an entry in
[packages.toml](../ft_host/registry/packages.toml): packages of this repository and of others stand side by side.

| package | offers | what it does | stability | last check |
| --- | --- | --- | --- | --- |
{rows}

## `ft-host plugins --available --json`

`format` and `host` as [the list of what is installed](plugins-json.md) has them, and `available`, an array of

| key | type | meaning |
| --- | --- | --- |
| `name` | string | what pip installs |
| `what` | string | what it does, in a sentence |
| `offers` | array of strings | its methods, backends and diagnostics |
| `stability` | string | `experimental`, `stable` or `deprecated` |
| `link` | string | where it is |
| `installed` | string or null | the version that is installed here |
| `checked` | object or null | the last time that `ft-host check` passed: `version`, `host`, `tier`, `date`, `passed`, `declared` |
"""  # noqa: E501  a row of a table


def ours() -> dict[str, Listed]:
    """The packages of this repository. Raises SystemExit where one isn't installed."""
    projects = [
        tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        for file in sorted(ROOT.glob("plugins/*/pyproject.toml"))
    ]
    found = {}
    for project in projects:
        plugins = [info for info in catalog() if normalise(info.distribution) == project["name"]]
        if not plugins:
            raise SystemExit(f"{project['name']} isn't installed: pip install -e plugins/{project['name']}")
        found[project["name"]] = listed(plugins)
    return found


def listed(plugins: list[PluginInfo]) -> Listed:
    first = plugins[0]
    record = recorded(first)
    return Listed(
        name=first.distribution,
        what=first.summary.partition(", as a ")[0],
        offers=tuple(dict.fromkeys(info.name for info in plugins)),
        stability=first.stability,
        link=f"https://pypi.org/project/{first.distribution}",
        checked=record
        and Checked(
            version=record.version,
            host=record.host,
            tier=record.tier,
            date=record.date,
            passed=record.passed,
            declared=record.declared,
        ),
    )


def index_text(listed: list[Listed]) -> str:
    return "\n".join([HEAD, *map(entry, listed)])


def entry(each: Listed) -> str:
    lines = ["[[package]]"]
    lines += [f"{name} = {json.dumps(getattr(each, name))}" for name in ("name", "what")]
    lines += [f"offers = {json.dumps(list(each.offers))}", f"stability = {json.dumps(each.stability)}"]
    lines += [f"link = {json.dumps(each.link)}"]
    if each.checked:
        inner = ", ".join(f"{name} = {json.dumps(value)}" for name, value in vars(each.checked).items())
        lines.append(f"checked = {{{inner}}}")
    return "\n".join(lines) + "\n"


def page(listed: list[Listed]) -> str:
    rows = [
        f"| [{each.name}]({each.link}) | {', '.join(f'`{name}`' for name in each.offers)} | {each.what} |"
        f" {each.stability} | {each.checked or 'never'} |"
        for each in listed
    ]
    return TEXT.format(rows="\n".join(rows))


def written() -> dict[Path, str]:
    """What the two files should hold."""
    mine = ours()
    others = [each for each in (packages(str(INDEX)) if INDEX.exists() else []) if each.name not in mine]
    every = sorted([*mine.values(), *others], key=lambda each: each.name)
    return {INDEX: index_text(every), PAGE: page(every)}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
