"""`ft-host check PACKAGE`: the checks that a package passes, fails, or declares that it can't pass."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.errors import FtHostError, UsageError
from ft_host.testing.conformance.check import ERROR, FAILED, TIERS, Check, Outcome, group_of
from ft_host.testing.conformance.surroundings import VARIABLES
from ft_host.util.jsonl import json_text

if TYPE_CHECKING:
    from ft_host.registry import PluginInfo
    from ft_host.testing.conformance.run import Suite
    from ft_host.testing.conformance.view import View

NOT_MET = 7  # the exit code where a check fails; where the suite itself goes wrong, it is 1
DESCRIPTION = """\
Ask what a package is held to: its metadata, imports, rows, losses and runs, on a model of two layers on the CPU. What
it can't meet it declares, with the reason, in its conformance.toml: docs/check.md says how.
"""
EPILOG = """\
exit codes: 0, 7 where a check fails (or passes though it is declared), 1 where the suite itself goes wrong

examples: ft-host check ft-my-method
          ft-host check ./my_method.py --only loss
          ft-host check ft-my-method --record
"""


def run(argv: list[str]) -> int:
    """Return the exit code. Raises PluginNotFound where there is no such package, UsageError for wrong use."""
    options = _parse(argv)
    from ft_host.testing.conformance.run import Suite, check_named, checks_of

    if options.explain:
        from ft_host.diagnostics.pages import terminal_text
        from ft_host.testing.conformance.pages import page

        print(terminal_text(page(check_named(options.explain))), end="")
        return 0
    checks = checks_of(options.tier, options.only)
    if options.list:
        print(_listed(checks, options.json))
        return 0
    os.environ.update(VARIABLES)  # before torch is loaded
    with tempfile.TemporaryDirectory(prefix="ft-host-check-") as folder:
        suite = Suite(options.package, Path(folder), recording=options.record, against=options.against)
        return _asked(suite, checks, options)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ft-host check",
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "package", metavar="PACKAGE", nargs="?", help="an installed distribution, a plugin of it, or a file"
    )
    parser.add_argument("--tier", choices=TIERS, default=TIERS[0], help="what to hold it to (default: %(default)s)")
    parser.add_argument(
        "--only", metavar="CHECK", action="append", default=[], help="a check, or the beginning of ids; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the checks of the tier, and ask none")
    parser.add_argument("--explain", metavar="CHECK", help="print the page of a check, and ask none")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, as described in docs/check.md")
    form.add_argument("--sarif", action="store_true", help="print SARIF 2.1.0, for code hosts and editors")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="with --json or --sarif: a file for it, beside the table"
    )
    parser.add_argument("--durations", metavar="N", type=int, default=0, help="print the N slowest checks at the end")
    parser.add_argument("--verbose", action="store_true", help="show what libraries, plugins and runs print meanwhile")
    parser.add_argument(
        "--record", action="store_true", help="write the outcome into the package, as evidence that it ships"
    )
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="a contract, or a wheel with one, that contract-kept compares with (default: that of the last release)",
    )
    options = parser.parse_args(argv)
    given = [options.package is not None, options.list, options.explain is not None]
    if sum(given) != 1:
        parser.error("expected one of PACKAGE, --list, --explain CHECK")
    if options.package is None and (options.record or options.sarif or options.output or options.durations):
        parser.error("--record, --sarif, --output and --durations are about a PACKAGE")
    if options.output and not (options.json or options.sarif):
        parser.error("--output goes with --json or --sarif")
    if options.record and options.only:
        parser.error("--record is of a whole tier, not --only some checks")
    if options.durations < 0:
        parser.error("--durations must be 0 or more")
    return options


def _listed(checks: list[Check], as_json: bool) -> str:
    from ft_host.testing.conformance.document import described
    from ft_host.testing.conformance.view import listing

    return json_text([described(check) for check in checks], indent=2) if as_json else listing(checks)


def _asked(suite: Suite, checks: list[Check], options: argparse.Namespace) -> int:
    from ft_host.testing.conformance.record import record, record_files, recordable
    from ft_host.testing.conformance.view import View

    with quiet(options, suite.folder):  # configs are imported
        items = suite.items(checks)
    if not items:
        raise UsageError(f"{suite.name} has no plugin that these checks are about")
    if options.record:
        recordable(suite)  # refused before a minute has passed
    as_text = options.output is not None or not (options.json or options.sarif)
    view = View(suite, options.tier, items, sys.stdout if as_text else None)
    made: list[Path] = []
    try:
        if options.record:
            with quiet(options, suite.folder):
                made = record_files(suite)
        found = _outcomes(suite, items, view, options)
        code = NOT_MET if any(each.result == FAILED for each in found) else 0
        code = code or int(any(each.result == ERROR for each in found))
        if options.record and not code:
            made.append(record(suite, options.tier, found))
            view.said("\n".join(f"recorded in {each}" for each in made))
            made = []
    finally:
        for path in made:  # of a package that isn't recorded
            path.unlink()
    if options.record and code:
        view.said("nothing is recorded, since a check failed")
    _written(suite, found, options)
    return code


def _outcomes(
    suite: Suite, items: list[tuple[Check, PluginInfo]], view: View, options: argparse.Namespace
) -> list[Outcome]:
    """Ask, and show each outcome at once."""
    began, found, loaded = time.perf_counter(), [], False
    for check, plugin in items:
        view.asking(check, plugin)
        with quiet(options, suite.folder):
            if not loaded and (check.about in ("method", "rollouts", "backend") or group_of(check) == "imports"):
                loaded = load_libraries()  # so that the first check doesn't seem slow
            outcome = suite.outcome(check, plugin)
        found.append(outcome)
        view.told(outcome)
    view.ended(found, time.perf_counter() - began, options.durations)
    return found


def load_libraries() -> bool:
    """Import what runs need, which takes seconds."""
    for name in ("torch", "transformers", "accelerate", "peft", "datasets"):
        importlib.import_module(name)
    return True


def quiet(options: argparse.Namespace, folder: Path) -> contextlib.AbstractContextManager[None]:
    from ft_host.testing.conformance.quiet import captured

    return contextlib.nullcontext() if options.verbose else captured(folder / "output.txt")


def _written(suite: Suite, found: list[Outcome], options: argparse.Namespace) -> None:
    from ft_host.testing.conformance.document import document
    from ft_host.testing.conformance.sarif import sarif

    if not (options.json or options.sarif):
        return
    value = sarif(suite, found) if options.sarif else document(suite, options.tier, found)
    text = json_text(value, indent=2)
    if options.output is None:
        print(text)
        return
    try:
        options.output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise FtHostError(f"{options.output}: could not be written: {error.strerror or error}") from error
