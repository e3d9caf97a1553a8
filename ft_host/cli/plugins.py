"""`ft-host plugins`: what is installed, from metadata. Only --check imports a plugin, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ft_host._version import __version__
from ft_host.errors import PluginNotFound
from ft_host.registry.catalog import CONFIGS, GROUPS, HOST, PluginInfo, catalog, policy
from ft_host.registry.conformance import recorded
from ft_host.registry.local import is_file, kind_of_file
from ft_host.registry.lookup import find, label, reference
from ft_host.registry.metadata import normalise, read_headers
from ft_host.util.jsonl import json_text
from ft_host.util.text import closest

if TYPE_CHECKING:
    from ft_host.registry.check import Outcome

HELP = "List installed methods, backends and diagnostics, with version, stability and state."

FORMAT = 1  # of --json; see docs/plugins-json.md
COLUMNS = ("name", "kind", "version", "stability", "distribution", "state")
COLOURS = {"ok": "32", "conflict": "33", "blocked": "2", "incompatible": "31", "broken": "31"}


def run(argv: list[str]) -> int:
    """Returns the exit code: 0, or 3 if --check finds a broken plugin. Raises FtHostError."""
    arguments = _parse(argv)
    if arguments.available is not None:
        from ft_host.cli.available import told

        print(told(arguments.available or None, arguments.json))
        return 0
    plugins = [] if arguments.command == "show" and is_file(arguments.name) else catalog()
    if arguments.command == "show":
        plugins = _named(plugins, arguments.name)
    if arguments.requirements:
        print("\n".join(_pins(plugins)))
        return 0
    outcomes = _check(plugins, arguments.timeout) if arguments.check else None
    if arguments.json:
        print(json_text(_document(plugins, outcomes), indent=2))
    elif arguments.command == "show":
        print("\n\n".join(_details(info, outcomes and outcomes[index]) for index, info in enumerate(plugins)))
    else:
        print(_listing(plugins, outcomes))
    return 3 if outcomes and any(outcome.result == "broken" for outcome in outcomes) else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ft-host plugins",
        description=HELP + " Everything is read from the metadata of the installed distributions; no plugin is "
        "imported, unless --check is given.",
        epilog=(
            "FT_HOST_PLUGINS=ft-sft,ft-dpo allows these distributions only (empty: none); FT_HOST_BLOCK=ft-dpo "
            "keeps one out. Both hold for every command."
        ),
    )
    parser.add_argument("command", nargs="?", choices=["show"], help="show NAME: everything known about one plugin")
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="sft, ft-sft:sft, a distribution such as ft-sft, or a file"
    )
    parser.add_argument(
        "--available",
        nargs="?",
        const="",
        metavar="INDEX",
        help="what has been published instead: from the index that comes with ft-host, a file or an https address",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, as described in docs/plugins-json.md")
    parser.add_argument("--requirements", action="store_true", help="print the distributions as pip requirements")
    parser.add_argument(
        "--check", action="store_true", help="import each plugin in a process of its own; exit 3 if one is broken"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="how long --check waits for one plugin (default: %(default)g)",
    )
    arguments = parser.parse_args(argv)
    if arguments.command and not arguments.name:
        parser.error("show: the name of a plugin is missing")
    if arguments.requirements and (arguments.json or arguments.check):
        parser.error("--requirements can't be combined with --json or --check")
    if arguments.available is not None and (arguments.command or arguments.check or arguments.requirements):
        parser.error("--available can be combined with --json alone")
    if arguments.timeout <= 0:
        parser.error("--timeout must be above 0")
    return arguments


def _named(plugins: list[PluginInfo], name: str) -> list[PluginInfo]:
    """The plugins that `show NAME` is about: by name, distribution:name or distribution, or the one in a file."""
    if is_file(name):
        return [find(kind_of_file(name), name)]
    named = [
        info
        for info in plugins
        if name in (info.name, reference(info)) or normalise(name) == normalise(info.distribution)
    ]
    if not named:
        guess = closest(name, [*(info.name for info in plugins), *(info.distribution for info in plugins)])
        installed = ", ".join(sorted({info.name for info in plugins})) or "none"
        raise PluginNotFound(
            f"no plugin {name!r} is installed"
            + (f"; did you mean {guess!r}?" if guess else "")
            + f"\ninstalled: {installed}"
        )
    return named


# ---------------------------------------------------------------- text


def _listing(plugins: list[PluginInfo], outcomes: list[Outcome] | None) -> str:
    if not plugins:
        return "no plugins are installed"
    states = [outcome.result for outcome in outcomes] if outcomes else [info.state for info in plugins]
    rows = [
        (info.name, info.kind, info.version, info.stability, info.distribution, state)
        for info, state in zip(plugins, states, strict=True)
    ]
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS))]
    lines = [_paint("  ".join(map(str.ljust, COLUMNS, widths)).rstrip(), "1")]
    for row in rows:
        cells = list(map(str.ljust, row, widths))
        cells[-1] = _paint(row[-1], COLOURS[row[-1]])
        lines.append("  ".join(cells))
    remarks = []
    for index, info in enumerate(plugins):
        problem = outcomes[index].cause if outcomes else info.problem
        found = outcomes[index].notes if outcomes else ()
        for remark in [*([problem] if problem else []), *info.notes, *found]:
            named = remark.startswith(label(info))  # a message of an import names the distribution itself
            remarks.append(remark if named else f"{reference(info)} ({info.kind}, {info.version}): {remark}")
    remarks += _policy_remarks(plugins)
    return "\n".join([*lines, *([""] if remarks else []), *dict.fromkeys(remarks)])


def _policy_remarks(plugins: list[PluginInfo]) -> list[str]:
    """What FT_HOST_PLUGINS and FT_HOST_BLOCK name in vain: most likely a slip of the pen."""
    known = {normalise(info.distribution) for info in plugins}
    allowed, blocked = policy()
    named = {"FT_HOST_PLUGINS": allowed or set(), "FT_HOST_BLOCK": blocked}
    return [
        f"{variable} names {name!r}, which is no installed distribution with a plugin"
        for variable, names in named.items()
        for name in sorted(names - known)
    ]


def _details(info: PluginInfo, outcome: Outcome | None) -> str:
    headers = _headers(info.distribution) if info.distribution else {}
    state = info.state + (f": {info.problem}" if info.problem else "")
    if outcome:
        state = outcome.result + (f": {outcome.cause}" if outcome.cause else f" (imported in {outcome.seconds:.1f} s)")
    rows = [
        ("kind", info.kind),
        ("state", state),
        ("summary", info.summary),
        ("distribution", f"{info.distribution} {info.version}".strip()),
        ("stability", info.stability),
        ("needs", f"ft-host{info.requires_host}" if info.requires_host else ""),
        ("module" if info.implied else "entry point", _entry_point(info)),
        ("config", _config(info)),
        ("conformance", _conformance(info)),
        ("location", info.location),
        *(("requires", text) for text in info.requires),
        ("license", (headers.get("license-expression") or headers.get("license") or [""])[0].splitlines()[:1]),
        *(("url", text) for text in headers.get("project-url", [])),
        *(("note", text) for text in (*info.notes, *(outcome.notes if outcome else ()))),
    ]
    lines = [_paint(info.name, "1")]
    for key, value in rows:
        value = "".join(value)
        if value:
            lines.append(f"  {key:<12}  {value}")
    return "\n".join(lines)


def _entry_point(info: PluginInfo) -> str:
    """A file has none."""
    if info.implied:
        return f"{info.value} (beside the method, without an entry point)"
    if info.kind not in GROUPS or not info.distribution:
        return info.value if info.distribution else ""
    return f"{GROUPS[info.kind]}: {info.name} = {info.value}"


def _conformance(info: PluginInfo) -> str:
    """What `ft-host check --record` left in the package."""
    found = recorded(info)
    return found.as_text(info.version) if found else ""


def _config(info: PluginInfo) -> str:
    if not info.config or not info.distribution:
        return info.config
    named = f"{CONFIGS}: {info.name} = {info.config}"
    return named if ":" in info.config else f"{info.config} (beside the method, without an entry point)"


def _paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


# ---------------------------------------------------------------- JSON and pins


def _document(plugins: list[PluginInfo], outcomes: list[Outcome] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "host": {"distribution": HOST, "version": __version__},
        "plugins": [_entry(info, outcomes and outcomes[index]) for index, info in enumerate(plugins)],
    }


def _entry(info: PluginInfo, outcome: Outcome | None) -> dict[str, Any]:
    entry = {
        "name": info.name,
        "kind": info.kind,
        "distribution": info.distribution,
        "version": info.version,
        "stability": info.stability,
        "state": info.state,
        "problem": info.problem,
        "notes": list(info.notes),
        "compatible": info.compatible,
        "requires_host": info.requires_host,
        "requires": list(info.requires),
        "entry_point": info.value,
        "implied": info.implied,
        "config": info.config or None,
        "location": info.location,
        "summary": info.summary,
        "conformance": asdict(found) if (found := recorded(info)) else None,
    }
    if outcome:
        entry["check"] = {
            "result": outcome.result,
            "cause": outcome.cause,
            "seconds": round(outcome.seconds, 3),
            "notes": list(outcome.notes),
        }
    return entry


def _pins(plugins: list[PluginInfo]) -> list[str]:
    """One line per distribution that isn't blocked, as pip reads it. What was installed from elsewhere says so."""
    import json

    import importlib_metadata

    pins = {}
    for info in plugins:
        if info.state == "blocked" or not info.version:
            continue
        origin = json.loads(importlib_metadata.distribution(info.distribution).read_text("direct_url.json") or "{}")
        pin = f"{info.distribution}=={info.version}"
        if "vcs_info" in origin:
            vcs = origin["vcs_info"]
            pin = f"{info.distribution} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"
        elif "archive_info" in origin:
            pin = f"{info.distribution} @ {origin['url']}"
        elif "dir_info" in origin:
            pin += f"  # installed from {origin['url']}"
        pins[normalise(info.distribution)] = pin
    return [pins[name] for name in sorted(pins)]


def _headers(distribution: str) -> dict[str, list[str]]:
    import importlib_metadata

    try:
        dist = importlib_metadata.distribution(distribution)
    except importlib_metadata.PackageNotFoundError:
        return {}  # listed as broken already: its METADATA has no name
    return read_headers(dist.read_text("METADATA") or dist.read_text("PKG-INFO") or "")


def _check(plugins: list[PluginInfo], timeout: float) -> list[Outcome]:
    from ft_host.registry.check import check

    def told(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\rchecked {done} of {len(plugins)}", end="" if done < len(plugins) else "\r\033[K", file=sys.stderr)

    return check(plugins, timeout=timeout, at_once=os.cpu_count() or 1, told=told)
