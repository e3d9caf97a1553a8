"""Installed plugins, read from distribution metadata. Listing a plugin imports nothing of it.

Everything comes from entry_points.txt and the headers of METADATA. entry_points.txt is read for every distribution,
METADATA only for those with an entry point of ours. Neither goes through a general parser: a broken file of one
distribution must not hide the others, and listing must be fast.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host._version import __version__
from ft_host.registry.metadata import (
    distributions,
    entries_of,
    headers_of,
    host_requirement,
    normalise,
    read,
    stability_of,
)
from ft_host.registry.modules import beside, locate

if TYPE_CHECKING:
    from importlib_metadata import Distribution

HOST = "ft-host"
CONFIGS = "ft_host.configs"
KINDS = {"ft_host.methods": "method", "ft_host.backends": "backend", "ft_host.diagnostics": "diagnostics"}
GROUPS = {kind: group for group, kind in KINDS.items()}
ORDER = (*GROUPS, "unknown")

# states of a plugin; if several apply, the first one counts
STATES = ("blocked", "incompatible", "broken", "conflict", "ok")

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*\w)?")


@dataclass(frozen=True, kw_only=True)
class PluginInfo:
    """One plugin, as described by its distribution's metadata. A local file has no distribution and no version."""

    kind: str  # "method", "backend" or "diagnostics"; "unknown" for an entry point in a group that this host lacks
    name: str
    distribution: str = ""
    version: str = ""
    stability: str = "experimental"  # or "stable", "deprecated"
    value: str = ""  # the entry point: the module that holds the hooks
    config: str = ""  # of a method, or of others with fields: module:Class, or a module (see config_class)
    summary: str = ""
    location: str = ""  # the module's file if it was found, else the folder of its metadata
    requires: tuple[str, ...] = ()  # Requires-Dist as written
    requires_host: str = ""  # the versions of ft-host it works with
    compatible: bool = True
    state: str = "ok"  # one of STATES
    problem: str | None = None  # the reason for `state`, if it isn't "ok"
    notes: tuple[str, ...] = ()  # remarks that are no reason to refuse it
    implied: bool = False  # diagnostics without an entry point, found in the package of their method


@functools.cache
def catalog() -> list[PluginInfo]:
    """Return all installed plugins in any state, sorted by kind and name. Scans once; `catalog.cache_clear()`."""
    plugins = [info for dist in distributions() for info in _plugins(dist)]
    plugins = _mark_conflicts(plugins)
    return sorted(plugins, key=lambda info: (ORDER.index(info.kind), info.name, info.distribution))


def policy() -> tuple[set[str] | None, set[str]]:
    """Return the allow-list (None: everything) and the block-list of distributions, from the environment."""
    allowed, blocked = os.environ.get("FT_HOST_PLUGINS"), os.environ.get("FT_HOST_BLOCK", "")
    return None if allowed is None else _names(allowed), _names(blocked)


def _names(text: str) -> set[str]:
    return {normalise(name) for name in text.split(",") if name.strip()}


# ---------------------------------------------------------------- plugins of one distribution


def _plugins(dist: Distribution) -> list[PluginInfo]:
    entries = list(entries_of(read(dist, "entry_points.txt")))
    headers = headers_of(dist)
    version = headers.get("version", [""])[0]
    stability, notes = stability_of(headers.get("classifier", []), version)
    requires = tuple(headers.get("requires-dist", []))
    requires_host, compatible, unreadable = host_requirement(requires)
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
        notes = (*notes, "doesn't declare which versions of ft-host it works with (Requires-Dist: ft-host)")
    refusal = _refusal(common["distribution"])

    configs = {name: value for group, name, value in entries if group == CONFIGS}
    methods = {name for group, name, _ in entries if KINDS.get(group) == "method"}
    backends = {name for group, name, _ in entries if KINDS.get(group) == "backend"} - methods
    # a name has one config: of the method, else of the backend, else of the diagnostics
    diagnostics = {name for group, name, _ in entries if KINDS.get(group) == "diagnostics"} - methods - backends
    owners = {"method": methods, "backend": backends, "diagnostics": diagnostics}
    keys = [entry[:2] for entry in entries]
    plugins = []
    for group, name, value in [*entries, *_implied(entries)]:
        if group == CONFIGS and name in methods | backends | diagnostics:
            continue  # listed with its method, backend or diagnostics
        location, problem = locate(value, attr=False)
        info = PluginInfo(
            kind=KINDS.get(group, "method" if group == CONFIGS else "unknown"),
            name=name,
            value=value,
            config=_config_value(group, name, value, configs, owners),
            location=location or str(dist.locate_file("")),
            notes=notes,
            implied=(group, name) not in keys,
            **common,
        )
        if group == CONFIGS:
            info = replace(info, value="", config=value)
            problem = (
                f"has a config in {CONFIGS} and no method of this name in {GROUPS['method']} (nor a backend in "
                f"{GROUPS['backend']}, nor diagnostics in {GROUPS['diagnostics']})"
            )
        elif info.kind == "unknown":
            problem = f"entry point group {group!r} is unknown to this host; it knows {', '.join([*KINDS, CONFIGS])}"
        elif not _NAME.fullmatch(name):
            problem = f"bad entry point: the name {name!r} has characters other than letters, digits, '.', '_' and '-'"
        elif keys.count((group, name)) > 1:
            problem = f"bad entry point: {name!r} occurs twice in {group}"
        elif info.config and keys.count((CONFIGS, name)) > 1:
            problem = f"bad entry point: {name!r} occurs twice in {CONFIGS}"
        elif not problem and (info.kind == "method" or info.config):
            problem = _config_problem(info, configs)
        state = "ok"
        if refusal:
            state, problem = "blocked", refusal
        elif not compatible:
            state, problem = "incompatible", f"needs ft-host{requires_host}, and this is ft-host {__version__}"
        elif problem or unreadable or not (version and headers.get("name")):
            state, problem = "broken", problem or unreadable or "its METADATA has no name or no version"
        plugins.append(replace(info, state=state, problem=problem))
    return plugins


def _implied(entries: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return the diagnostics that methods have without an entry point.

    This is the module `rules` next to a method, if no entry point names it and its text shows that it has a hook: it
    may be something else of this name.
    """
    names = {name for group, name, _ in entries if KINDS.get(group) == "diagnostics"}
    values = {value for _, _, value in entries}
    implied = []
    for group, name, value in entries:
        rules = beside(value, "rules") if KINDS.get(group) == "method" and name not in names else ""
        place = locate(rules, attr=False)[0] if rules and rules not in values else None
        if place is not None and place.endswith(".py") and "hookimpl" in Path(place).read_text(encoding="utf-8"):
            implied.append((GROUPS["diagnostics"], name, rules))
    return implied


def _config_value(group: str, name: str, value: str, configs: dict[str, str], owners: dict[str, set[str]]) -> str:
    kind = KINDS.get(group)
    if kind == "method":
        return configs[name] if name in configs else beside(value, "config")
    return configs.get(name, "") if name in owners.get(kind, ()) else ""


def _config_problem(info: PluginInfo, configs: dict[str, str]) -> str | None:
    if info.name in configs:
        problem = locate(configs[info.name], attr=True)[1]
        return f"its config: {problem}" if problem else None
    if info.config:
        return None
    return (
        f"has no config: {CONFIGS} has no entry point {info.name!r}, and there is no module config beside {info.value}"
    )


def _refusal(distribution: str) -> str | None:
    """Return why the environment excludes this distribution, or None. The allow-list can't exclude the host itself."""
    allowed, blocked = policy()
    if normalise(distribution) in blocked:
        return "blocked by the environment variable FT_HOST_BLOCK"
    if allowed is not None and normalise(distribution) not in allowed | {HOST}:
        return "not in the allow-list of the environment variable FT_HOST_PLUGINS"
    return None


def _mark_conflicts(plugins: list[PluginInfo]) -> list[PluginInfo]:
    """Mark two distributions with the same name as "conflict", unless their state is worse already. Both stay."""
    claims: dict[tuple[str, str], set[str]] = {}
    for info in plugins:
        if info.state != "blocked":
            claims.setdefault((info.kind, info.name), set()).add(info.distribution)
    marked = []
    for info in plugins:
        rivals = sorted(claims.get((info.kind, info.name), set()) - {info.distribution})
        if rivals and info.state == "ok" and info.kind != "unknown":
            problem = (
                f"{', '.join(rivals)} also offers the {info.kind} {info.name!r}; "
                f"{info.distribution}:{info.name} selects this one"
            )
            info = replace(info, state="conflict", problem=problem)
        marked.append(info)
    return marked
