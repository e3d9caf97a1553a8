"""What is installed, from distribution metadata alone. Nothing of a plugin is imported to list it.

Everything comes from entry_points.txt and the headers of METADATA. entry_points.txt is read of every distribution and
METADATA only of those that have an entry point for us; neither goes through a general parser, since a file that one
distribution got wrong must not hide the others, and since listing must be quick.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ft_host._version import __version__

if TYPE_CHECKING:
    from importlib_metadata import Distribution

HOST = "ft-host"
PREFIX = "ft_host."
CONFIGS = "ft_host.configs"
KINDS = {"ft_host.methods": "method", "ft_host.backends": "backend", "ft_host.diagnostics": "diagnostics"}
GROUPS = {kind: group for group, kind in KINDS.items()}
ORDER = (*GROUPS, "unknown")

# state of a plugin; when several are true the first one counts
STATES = ("blocked", "incompatible", "broken", "conflict", "ok")

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?")
_VALUE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)\s*(?::\s*(?P<attr>[^\W\d][\w.]*)\s*)?(?:\[.*\])?")
_STABILITY = {
    "1": "experimental",
    "2": "experimental",
    "3": "experimental",
    "4": "experimental",
    "5": "stable",
    "6": "stable",
    "7": "deprecated",
}


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plugin, as its distribution's metadata describes it. A local file has no distribution and no version."""

    kind: str  # "method", "backend" or "diagnostics"; "unknown" for an entry point in a group that this host lacks
    name: str
    distribution: str = ""
    version: str = ""
    stability: str = "experimental"  # or "stable", "deprecated"
    value: str = ""  # the entry point: the module that holds the hooks
    config: str = ""  # of a method, or of a backend that has fields: module:Class of its config
    summary: str = ""
    location: str = ""  # file of the module where it was found, else the folder that its metadata lies in
    requires: tuple[str, ...] = ()  # Requires-Dist as written
    requires_host: str = ""  # the versions of ft-host it works with
    compatible: bool = True
    state: str = "ok"  # one of STATES
    problem: str | None = None  # what `state` is about, where it isn't "ok"
    notes: tuple[str, ...] = ()  # worth saying, but no reason to refuse


@functools.cache
def catalog() -> list[PluginInfo]:
    """All installed plugins, whatever their state, sorted by kind and name. Scans once; `catalog.cache_clear()`."""
    plugins = [info for dist in _distributions() for info in _plugins(dist)]
    plugins = _mark_conflicts(plugins)
    return sorted(plugins, key=lambda info: (ORDER.index(info.kind), info.name, info.distribution))


def normalise(distribution: str) -> str:
    """The name of a distribution as it is compared: ft_sft, FT-SFT and ft.sft are one (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def policy() -> tuple[set[str] | None, set[str]]:
    """The allow-list (None: everything) and the block-list of distributions, from the environment."""
    allowed, blocked = os.environ.get("FT_HOST_PLUGINS"), os.environ.get("FT_HOST_BLOCK", "")
    return None if allowed is None else _names(allowed), _names(blocked)


def _names(text: str) -> set[str]:
    return {normalise(name) for name in text.split(",") if name.strip()}


def read_headers(text: str) -> dict[str, list[str]]:
    """The headers of a METADATA file, in lower case, each with its values. Reads up to the description."""
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


# ---------------------------------------------------------------- distributions


def _distributions() -> Iterator[Distribution]:
    """The distributions with an entry point for us, each name once: the one that Python would import from."""
    import importlib_metadata

    seen = set()
    for dist in importlib_metadata.distributions():
        if PREFIX not in _read(dist, "entry_points.txt"):
            continue
        name = _name_and_version(dist)[0]
        if normalise(name) in seen:
            continue
        seen.add(normalise(name))
        try:
            first = importlib_metadata.distribution(name)
        except (importlib_metadata.PackageNotFoundError, ValueError):
            first = dist  # no METADATA, or it names something else than its folder
        yield first


def _read(dist: Distribution, file: str) -> str:
    try:
        return dist.read_text(file) or ""
    except UnicodeDecodeError as err:  # its garbled part is then shown as such, or refused
        return err.object.decode("utf-8", errors="replace")


def _headers(dist: Distribution) -> dict[str, list[str]]:
    return read_headers(_read(dist, "METADATA") or _read(dist, "PKG-INFO"))


def _name_and_version(dist: Distribution) -> tuple[str, str]:
    headers = _headers(dist)
    return headers.get("name", [""])[0], headers.get("version", [""])[0]


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """(group, name, value) of each line in a group of ours. A line without "=" has no value."""
    group = ""
    for line in map(str.strip, text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if line[0] == "[" and line[-1] == "]":
            group = line[1:-1].strip()
        elif group.startswith(PREFIX):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


# ---------------------------------------------------------------- plugins of one distribution


def _plugins(dist: Distribution) -> list[PluginInfo]:
    entries = list(_entries(_read(dist, "entry_points.txt")))
    headers = _headers(dist)
    version = headers.get("version", [""])[0]
    stability, notes = _stability(headers.get("classifier", []), version)
    requires = tuple(headers.get("requires-dist", []))
    requires_host, compatible, unreadable = _host_requirement(requires)
    common = {
        "distribution": headers.get("name", [""])[0] or f"(no name, in {dist.locate_file('')})",
        "version": version,
        "stability": stability,
        "summary": headers.get("summary", [""])[0],
        "requires": requires,
        "requires_host": requires_host,
        "compatible": compatible,
    }
    if not requires_host and not unreadable and normalise(common["distribution"]) != HOST:
        notes = (*notes, "doesn't say which versions of ft-host it works with (Requires-Dist: ft-host)")
    refusal = _refusal(common["distribution"])

    configs = {name: value for group, name, value in entries if group == CONFIGS}
    methods = {name for group, name, _ in entries if KINDS.get(group) == "method"}
    backends = {name for group, name, _ in entries if KINDS.get(group) == "backend"} - methods
    keys = [entry[:2] for entry in entries]
    plugins = []
    for group, name, value in entries:
        if group == CONFIGS and name in methods | backends:
            continue  # listed with its method or backend
        location, problem = _locate(value, attr=False)
        info = PluginInfo(
            kind=KINDS.get(group, "method" if group == CONFIGS else "unknown"),
            name=name,
            value=value,
            config=configs.get(name, "") if KINDS.get(group) == "method" or name in backends else "",
            location=location or str(dist.locate_file("")),
            notes=notes,
            **common,
        )
        if group == CONFIGS:
            info = replace(info, value="", config=value)
            problem = (
                f"has a config in {CONFIGS} and no method of this name in {GROUPS['method']} (nor a backend in "
                f"{GROUPS['backend']})"
            )
        elif info.kind == "unknown":
            problem = f"entry point group {group!r} is unknown to this host; it knows {', '.join([*KINDS, CONFIGS])}"
        elif not _NAME.fullmatch(name):
            problem = f"bad entry point: the name {name!r} has characters other than letters, digits, '.', '_' and '-'"
        elif keys.count((group, name)) > 1:
            problem = f"bad entry point: {name!r} stands twice in {group}"
        elif info.config and keys.count((CONFIGS, name)) > 1:
            problem = f"bad entry point: {name!r} stands twice in {CONFIGS}"
        elif not problem and (info.kind == "method" or info.config):
            problem = _config_problem(name, configs)
        state = "ok"
        if refusal:
            state, problem = "blocked", refusal
        elif not compatible:
            state, problem = "incompatible", f"needs ft-host{requires_host}, and this is ft-host {__version__}"
        elif problem or unreadable or not (version and headers.get("name")):
            state, problem = "broken", problem or unreadable or "its METADATA has no name or no version"
        plugins.append(replace(info, state=state, problem=problem))
    return plugins


def _config_problem(method: str, configs: dict[str, str]) -> str | None:
    if method not in configs:
        return f"has no config: {CONFIGS} has no entry point {method!r}"
    problem = _locate(configs[method], attr=True)[1]
    return f"its config: {problem}" if problem else None


def _refusal(distribution: str) -> str | None:
    """Why the environment keeps this distribution out, if it does. The allow-list can't keep out the host itself."""
    allowed, blocked = policy()
    if normalise(distribution) in blocked:
        return "blocked by the environment variable FT_HOST_BLOCK"
    if allowed is not None and normalise(distribution) not in allowed | {HOST}:
        return "not in the allow-list of the environment variable FT_HOST_PLUGINS"
    return None


def _stability(classifiers: list[str], version: str) -> tuple[str, tuple[str, ...]]:
    """The tag from the Development Status classifier, and what is odd about it."""
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
def _host_requirement(requires: tuple[str, ...]) -> tuple[str, bool, str | None]:
    """(versions of the host that are needed, whether this one is among them, what can't be read)."""
    ours = [text for text in requires if re.match(r"ft[-_.]+host(?![\w.-])", text, re.IGNORECASE)]
    if not ours:
        return "", True, None
    from packaging.requirements import InvalidRequirement, Requirement  # not before it is needed: 15 ms

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


# ---------------------------------------------------------------- modules, found but not imported


def _locate(value: str, *, attr: bool) -> tuple[str | None, str | None]:
    """(file, problem) of an entry point's value: a module, or with `attr` an object in a module."""
    expected = "package.module:Class" if attr else "package.module"
    match = _VALUE.fullmatch(value)
    if not value:
        return None, f"bad entry point: it is empty, expected {expected}"
    if match is None or bool(match["attr"]) != attr:
        return None, f"bad entry point: {value!r}, expected {expected}"
    path, name, origin = None, "", None
    for part in match["module"].split("."):
        parent, name = name, f"{name}.{part}" if name else part
        if parent and path is None:
            return None, f"bad entry point: {value!r}, but {parent} is a module, not a package ({origin})"
        spec = _find_spec(name, path)
        if spec is None:
            return None, f"bad entry point: {value!r}, but there is no module {name}"
        path = spec.submodule_search_locations
        origin = spec.origin or next(iter(path or ()), None)
    return origin, None


def _find_spec(name: str, path):
    """Where a module would come from. `importlib.util.find_spec` would import the packages above it."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def _mark_conflicts(plugins: list[PluginInfo]) -> list[PluginInfo]:
    """Two distributions that offer one name: both stay, in state "conflict" unless something worse is known."""
    claims: dict[tuple[str, str], set[str]] = {}
    for info in plugins:
        if info.state != "blocked":
            claims.setdefault((info.kind, info.name), set()).add(info.distribution)
    marked = []
    for info in plugins:
        rivals = sorted(claims.get((info.kind, info.name), set()) - {info.distribution})
        if rivals and info.state == "ok" and info.kind != "unknown":
            problem = (
                f"{', '.join(rivals)} offers the {info.kind} {info.name!r} too; "
                f"{info.distribution}:{info.name} chooses this one"
            )
            info = replace(info, state="conflict", problem=problem)
        marked.append(info)
    return marked
