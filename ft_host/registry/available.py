"""Packages that somebody has published, installed or not: an index in TOML. Reading it imports nothing, and nothing in
it is run.

    [[package]]
    name = "ft-orpo"                        # what pip installs
    what = "Preferences without a reference model"
    offers = ["orpo"]                       # methods, backends and diagnostics
    stability = "experimental"              # or stable, deprecated
    link = "https://pypi.org/project/ft-orpo"
    checked = {version = "0.1.0", host = "1.0.0", tier = "experimental", date = "2026-11-29", passed = 31, declared = 1}

`checked` is the last time that `ft-host check` passed, and is left out where it never did.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.util.text import nearest

OURS = "packages.toml"  # the index that comes with the host, beside this module
STABILITIES = ("experimental", "stable", "deprecated")
LONGEST = 30.0  # seconds for an index from elsewhere


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The last time that `ft-host check` passed."""

    version: str
    host: str
    tier: str
    date: str
    passed: int
    declared: int = 0

    def __str__(self) -> str:
        declared = f", {self.declared} declared" if self.declared else ""
        return (
            f"{self.version} passed {self.passed} {self.tier} checks{declared} with ft-host {self.host} on {self.date}"
        )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A package of the index."""

    name: str
    what: str
    offers: tuple[str, ...]
    stability: str
    link: str
    checked: Checked | None = None


def packages(place: str | None = None) -> list[Listed]:
    """Return the packages of an index, by name: that of a file or an https address, or the host's own.

    Raises UsageError where it can't be read, or an entry isn't of this shape.
    """
    where = place or f"the index of ft-host, {OURS}"
    try:
        found = tomllib.loads(text_of(place))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: {error}") from error
    entries = found.get("package")
    if not isinstance(entries, list) or found.keys() != {"package"}:
        keys = ", ".join(found) or "nothing"
        raise UsageError(f"{where}: expected [[package]] entries and nothing else, found {keys}")
    listed = [entry_of(entry, f"{where}, package {number}") for number, entry in enumerate(entries, 1)]
    names = [each.name for each in listed]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"{where}: {twice[0]} stands there twice")
    return sorted(listed, key=lambda each: each.name)


def text_of(place: str | None) -> str:
    if place is None:
        return (resources.files(__package__) / OURS).read_text(encoding="utf-8")
    if place.startswith("https://"):
        from urllib.error import URLError
        from urllib.request import urlopen

        try:
            with urlopen(place, timeout=LONGEST) as answer:
                return answer.read().decode("utf-8")
        except (URLError, TimeoutError, UnicodeDecodeError) as error:
            raise UsageError(f"can't read {place}: {error}") from error
    if "://" in place:
        raise UsageError(f"{place}: expected a file or an https address")
    try:
        return Path(place).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {place}: {error}") from error


def entry_of(entry: Any, where: str) -> Listed:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: expected a table, found {entry!r}")
    checked = made(Checked, entry.get("checked"), f"{where}: checked") if "checked" in entry else None
    found = made(Listed, {name: value for name, value in entry.items() if name != "checked"}, where)
    if found.stability not in STABILITIES:
        raise UsageError(
            f"{where}: stability is {found.stability!r}{nearest(found.stability, STABILITIES)}; expected "
            + ", ".join(STABILITIES)
        )
    return replace(found, offers=tuple(found.offers), checked=checked)


SHAPES = {"str": (str, "text"), "int": (int, "a whole number"), "tuple[str, ...]": (list, "a list of texts")}


def made(shape: type, values: Any, where: str) -> Any:
    """An instance of a dataclass of texts, numbers and lists of texts. Raises UsageError, by key."""
    known = {field.name: field for field in fields(shape) if str(field.type) in SHAPES}
    if not isinstance(values, dict):
        raise UsageError(f"{where}: expected a table, found {values!r}")
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where}: {name!r}{nearest(name, known)}; expected {', '.join(known)}")
        kind, said = SHAPES[str(known[name].type)]
        if not isinstance(value, kind) or (kind is list and not all(isinstance(each, str) for each in value)):
            raise UsageError(f"{where}: {name} is {value!r}; expected {said}")
    lacking = [name for name, field in known.items() if name not in values and field.default is MISSING]
    if lacking:
        raise UsageError(f"{where}: has no {lacking[0]}")
    return shape(**values)
