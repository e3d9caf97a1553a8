"""Distribution metadata, read as text: entry_points.txt of every distribution, METADATA of those with an entry point of
ours.

Neither goes through a general parser: a broken file of one distribution must not hide the others, and listing must be
fast.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ft_host._version import __version__

if TYPE_CHECKING:
    from importlib_metadata import Distribution

PREFIX = "ft_host."
_STABILITY = {
    "1": "experimental",
    "2": "experimental",
    "3": "experimental",
    "4": "experimental",
    "5": "stable",
    "6": "stable",
    "7": "deprecated",
}


def normalise(distribution: str) -> str:
    """Return the name of a distribution for comparison: ft_sft, FT-SFT and ft.sft are the same (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def read_headers(text: str) -> dict[str, list[str]]:
    """Return the headers of a METADATA file, in lower case, each with its values. Reads up to the description."""
    headers: dict[str, list[str]] = {}
    values: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            break
        if line[0] in " \t" and values:
            values[-1] += "\n" + line.strip()
            continue
        key, _, value = line.partition(":")
        values = headers.setdefault(key.strip().lower(), [])
        values.append(value.strip())
    return headers


def distributions() -> Iterator[Distribution]:
    """Yield the distributions with an entry point of ours, one for each name: the one that Python would import."""
    import importlib_metadata

    seen = set()
    for dist in importlib_metadata.distributions():
        if PREFIX not in read(dist, "entry_points.txt"):
            continue
        name = _name_and_version(dist)[0]
        if normalise(name) in seen:
            continue
        seen.add(normalise(name))
        try:
            first = importlib_metadata.distribution(name)
        except (importlib_metadata.PackageNotFoundError, ValueError):
            first = dist  # no METADATA, or a name other than the folder's
        yield first


def read(dist: Distribution, file: str) -> str:
    try:
        return dist.read_text(file) or ""
    except UnicodeDecodeError as err:  # the garbled part is then shown as it is, or refused
        return err.object.decode("utf-8", errors="replace")


def headers_of(dist: Distribution) -> dict[str, list[str]]:
    return read_headers(read(dist, "METADATA") or read(dist, "PKG-INFO"))


def _name_and_version(dist: Distribution) -> tuple[str, str]:
    headers = headers_of(dist)
    return headers.get("name", [""])[0], headers.get("version", [""])[0]


def entries_of(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (group, name, value) for each line in a group of ours. A line without "=" has no value."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
        elif group.startswith(PREFIX):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


def stability_of(classifiers: list[str], version: str) -> tuple[str, tuple[str, ...]]:
    """Return the tag from the Development Status classifier, and remarks on inconsistencies."""
    tags = [text for text in classifiers if text.startswith("Development Status ::")]
    stability = _STABILITY.get(tags[0].partition("::")[2].strip()[:1], "experimental") if tags else "experimental"
    notes = []
    if len(tags) > 1:
        notes.append(f"has several Development Status classifiers; the first one counts: {tags[0]}")
    major = re.match(r"v?(?:\d+!)?(\d+)", version)
    if major and stability == "experimental" and int(major[1]) > 0:
        notes.append(f"version {version} says stable (1.0 or later), but its classifier says experimental")
    if major and stability == "stable" and int(major[1]) == 0:
        notes.append(f"version {version} says experimental (below 1.0), but its classifier says stable")
    return stability, tuple(notes)


@functools.cache
def host_requirement(requires: tuple[str, ...]) -> tuple[str, bool, str | None]:
    """Return (required versions of the host, whether this one satisfies them, what can't be read)."""
    ours = [text for text in requires if re.match(r"ft[-_.]+host(?![\w.-])", text, re.IGNORECASE)]
    if not ours:
        return "", True, None
    from packaging.requirements import InvalidRequirement, Requirement  # imported lazily: 15 ms

    needed = None
    for text in ours:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as err:
            return "", True, f"can't read its requirement {text!r}: {str(err).splitlines()[0]}"
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed = requirement.specifier if needed is None else needed & requirement.specifier
    if needed is None:
        return "", True, None
    return str(needed), needed.contains(__version__, prereleases=True), None
