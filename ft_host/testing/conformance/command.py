"""`ft-host check PACKAGE`: the checks that a package passes, fails, or declares that it can't pass."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ft_host.testing.conformance.check import DECLARED, FAILED, LEFT_OUT, PASSED, TIERS, Outcome

NOT_MET = 7  # the exit code where a check fails
COLOURS = {PASSED: "32", FAILED: "31", DECLARED: "33", LEFT_OUT: "2"}


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ft-host check",
        allow_abbrev=False,
        description="Ask what a package is held to: metadata, imports, rows, losses, runs.",
        epilog="example: ft-host check ft-my-method\n         ft-host check ./my_method.py --only loss",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("package", metavar="PACKAGE", help="an installed distribution, a plugin of it, or a file")
    parser.add_argument("--tier", choices=TIERS, default=TIERS[0], help="what to hold it to (default: %(default)s)")
    parser.add_argument("--only", metavar="CHECK", action="append", default=[], help="a check, or the beginning of ids")
    options = parser.parse_args(argv)
    from ft_host.testing.conformance.run import Suite, checks_of

    checks = checks_of(options.tier, options.only)
    with tempfile.TemporaryDirectory(prefix="ft-host-check-") as folder:
        found = Suite(options.package, Path(folder)).run(checks, told=lambda outcome: print(line(outcome), flush=True))
    return NOT_MET if any(each.result == FAILED for each in found) else 0


def line(outcome: Outcome) -> str:
    said = f"\n    {outcome.said}" if outcome.said else ""
    more = f"\n    {outcome.check.mend}" if outcome.result == FAILED else ""
    return f"{outcome.result:9} {outcome.name} ({outcome.seconds:.1f} s){said}{more}"
