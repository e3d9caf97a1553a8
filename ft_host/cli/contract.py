"""`ft-host contract PACKAGE`: the public surface of a package as JSON, and what has changed since another one."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.util.jsonl import json_text

BREAKS = 6  # the exit code of --against where something is gone or changed


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host contract",
        allow_abbrev=False,
        description=(
            "Print what a package promises, as JSON: its fields with types, bounds and defaults, the columns that it "
            "reads, its metrics, rules and hooks. Of ft-host: hooks, what its doors offer, fields, commands, codes."
        ),
        epilog=(
            "example: ft-host contract ft-dpo > contracts/ft-dpo-0.4.0.json\n"
            "         ft-host contract ft-dpo --against contracts/ft-dpo-0.4.0.json"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("package", metavar="PACKAGE", help="an installed distribution, such as ft-dpo, or ft-host")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="an earlier contract: print what has changed instead; exit code 6 if it breaks somebody",
    )
    parser.add_argument("--json", action="store_true", help="with --against: print the changes as JSON")
    options = parser.parse_args(argv)
    if options.json and options.against is None:
        parser.error("--json goes with --against: a contract is JSON anyway")
    found = surface_of(options.package)
    if options.against is None:
        print(json_text(found, indent=2))
        return 0
    return told(read(options.against, found["distribution"]), found, options.json)


def surface_of(package: str) -> dict[str, Any]:
    from ft_host.registry.metadata import normalise
    from ft_host.surface import host_surface, package_surface

    return host_surface(commands()) if normalise(package) == "ft-host" else package_surface(package)


def commands() -> dict[str, list[str]]:
    """Return the commands, each with its options, as `--help` lists them."""
    from ft_host.cli import COMMANDS, answered

    found = {}
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            answered([name, "--help"])
        found[name] = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said.getvalue())) - {"--help"})
    return found


def read(file: Path, distribution: str) -> dict[str, Any]:
    """Return the contract in a file. Raises UsageError where it is none, or that of another package."""
    from ft_host.surface.shapes import FORMAT

    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--against: can't read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"--against: {file} is no JSON: {error}") from error
    if not isinstance(found, dict) or "distribution" not in found:
        raise UsageError(f"--against: {file} is no contract, as `ft-host contract {distribution}` prints it")
    if found["distribution"] != distribution:
        raise UsageError(f"--against: {file} is the contract of {found['distribution']}, and this is {distribution}")
    if found.get("format") != FORMAT:
        raise UsageError(f"--against: {file} has format {found.get('format')}, and this ft-host reads {FORMAT}")
    return found


def told(old: dict[str, Any], new: dict[str, Any], as_json: bool) -> int:
    from ft_host.surface import changes
    from ft_host.surface.compare import MAJOR

    found = changes(old, new)
    if as_json:
        print(json_text([{"path": each.path, "what": each.what, "needs": each.needs} for each in found], indent=2))
    else:
        print("\n".join(map(str, found)) or f"nothing has changed since {old['version']}")
    return BREAKS if any(each.needs == MAJOR for each in found) else 0
