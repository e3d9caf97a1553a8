"""`ft-host diagnose RUN`: finds problems of a run from its folder. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ft_host.diagnostics.finding import at_least
from ft_host.diagnostics.output import as_json, as_text
from ft_host.diagnostics.replay import diagnose
from ft_host.diagnostics.rule import SEVERITIES
from ft_host.diagnostics.sarif import as_sarif
from ft_host.errors import FtHostError, StoppedByFinding
from ft_host.util.console import show

HELP = "Apply the rules of a run to its folder, and print findings, causes and remedies."
FORMATS = {"json": as_json, "sarif": as_sarif}


def run(argv: list[str]) -> int:
    """Return the exit code. Raises UsageError where the folder isn't a run's, or for an unknown code."""
    parser = argparse.ArgumentParser(
        prog="ft-host diagnose",
        description=HELP + " Works for runs that failed, still run, or used other rules, too.",
        epilog="Exit code: 5 if --fail-on applies, 2 for wrong use, otherwise 0.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--format", choices=("text", *FORMATS), default="text", help="default: text")
    parser.add_argument("--all", action="store_true", help="with text, say of each rule without an answer why")
    parser.add_argument(
        "--select",
        metavar="CODES",
        type=_codes,
        help="rules to use, separated by commas: GRPO,NUM001 (default: those of the run's config)",
    )
    parser.add_argument("--ignore", metavar="CODES", type=_codes, help="rules to leave out, in the same format")
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, help="exit with 5 if a finding of this severity or above is open"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="output file (default: the terminal)")
    arguments = parser.parse_args(argv)
    if arguments.all and arguments.format != "text":
        parser.error(f"--all: is for text; {arguments.format} has all rules without an answer as it is")
    diagnosis = diagnose(arguments.run, arguments.select, arguments.ignore)
    chosen = FORMATS.get(arguments.format)
    text = chosen(diagnosis) if chosen else as_text(diagnosis, arguments.all)
    if arguments.output is None:
        show(text, end="")
    else:
        write(arguments.output, text)
    limit = arguments.fail_on
    bad = [
        item for item in diagnosis.findings if item["state"] == "open" and limit and at_least(item["severity"], limit)
    ]
    return StoppedByFinding.exit_code if bad else 0


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FtHostError(f"{path}: could not be written: {error.strerror or error}") from error


def _codes(text: str) -> list[str]:
    return [code.strip() for code in text.split(",") if code.strip()]
