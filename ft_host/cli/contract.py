"""`ft-host contract PACKAGE`: the public surface of a package as JSON, and what has changed since another one."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import ft_host
from ft_host.errors import FtHostError, UsageError
from ft_host.surface.released import FILE, changelog_of, given_contract, last_contract
from ft_host.util.jsonl import json_text

BREAKS = 6  # the exit code of --against where something is gone or changed


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host contract",
        allow_abbrev=False,
        description=(
            "Print what a package promises, as JSON: its fields with types, bounds and defaults, the columns that it "
            "reads, its metrics, rules and hooks, what checkpoints hold, and what is going to go. Of ft-host: hooks, "
            "what its doors offer, fields, commands, codes."
        ),
        epilog=(
            "example: ft-host contract ft-dpo > contracts/ft-dpo-0.4.0.json\n"
            "         ft-host contract ft-dpo --against contracts/ft-dpo-0.4.0.json\n"
            "         ft-host contract ft-dpo --record"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("package", metavar="PACKAGE", help="an installed distribution, such as ft-dpo, or ft-host")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="an earlier contract, or a wheel that carries one: print what has changed instead, and what of it the "
        "version or the changelog doesn't allow; exit code 6 if it breaks somebody",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"write it into the package, as {FILE}, for the next release to carry; refused where it breaks what the "
        "last release promised",
    )
    parser.add_argument("--json", action="store_true", help="with --against: print the changes as JSON")
    options = parser.parse_args(argv)
    if options.record and options.against is not None:
        parser.error("--record compares with the last release by itself: leave out --against")
    if options.json and options.against is None:
        parser.error("--json goes with --against: a contract is JSON anyway")
    found = surface_of(options.package)
    if options.record:
        return record(found)
    if options.against is None:
        print(json_text(found, indent=2))
        return 0
    return told(given_contract(options.against, found["distribution"]), found, options.json)


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


def package_of(distribution: str) -> Path:
    """Return the folder of a package's modules. Raises UsageError where it is a single module, which has no data."""
    from ft_host.registry.catalog import catalog
    from ft_host.registry.conformance import package_folder
    from ft_host.registry.metadata import normalise

    if distribution == "ft-host":
        return Path(ft_host.__file__).parent
    first = next(info for info in catalog() if normalise(info.distribution) == normalise(distribution))
    folder = package_folder(first)
    if folder is None:
        raise UsageError(f"{distribution} is one module, and data needs a package: a folder with __init__.py")
    return folder


def record(found: dict[str, Any]) -> int:
    """Write a contract into its package. Raises UsageError where it can't be written, and FtHostError where it breaks
    what the last release promised."""
    from ft_host.surface import verdict

    folder = package_of(found["distribution"])
    last = last_contract(found["distribution"], found["version"], folder)
    if last is not None:
        judged = verdict(last[1], found, changelog_of(folder))
        if not judged.kept:
            raise FtHostError(
                f"nothing was written: {found['distribution']} {found['version']} breaks what {last[0]} has "
                f"promised for {last[1]['version']}:\n{judged.as_text()}"
            )
    file = folder / FILE
    try:
        file.write_text(json_text(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} can't be written: {error.strerror}") from error
    print(file)
    return 0


def told(old: dict[str, Any], new: dict[str, Any], as_json: bool) -> int:
    from ft_host.surface import verdict
    from ft_host.surface.compare import MAJOR

    judged = verdict(old, new, changelog_of(package_of(new["distribution"])))
    if as_json:
        told = [
            {"path": each.path, "what": each.what, "needs": each.needs, "refused": judged.refused.get(each)}
            for each in judged.found
        ]
        print(json_text(told, indent=2))
    else:
        print("\n".join(map(str, judged.found)) or f"nothing has changed since {old['version']}")
        if not judged.kept:
            print(f"\nrefused:\n{judged.as_text()}")
    return BREAKS if any(each.needs == MAJOR for each in judged.found) else 0
