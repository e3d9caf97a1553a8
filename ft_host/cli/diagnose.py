"""`ft-host diagnose RUN`: what is the matter with a run, by its folder. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ft_host.diagnostics.finding import at_least
from ft_host.diagnostics.output import as_json, as_text
from ft_host.diagnostics.replay import diagnose
from ft_host.diagnostics.rule import SEVERITIES
from ft_host.diagnostics.sarif import as_sarif
from ft_host.errors import FtHostError, StoppedByFinding

HELP = "Hold the rules of a run against its folder, and say what they find, why, and what to change."
FORMATS = {"text": as_text, "json": as_json, "sarif": as_sarif}


def run(argv: list[str]) -> int:
    """Returns the exit code. Raises UsageError where the folder is no run's, or for a code that no rule has."""
    parser = argparse.ArgumentParser(
        prog="ft-host diagnose",
        description=HELP + " Also of a run that failed, or still runs, or was made with other rules.",
        epilog="Exit code: 5 where --fail-on asks for it, 2 for wrong use, else 0.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text", help="default: text")
    parser.add_argument(
        "--select",
        metavar="CODES",
        type=_codes,
        help="rules to use, separated by commas: GRPO,NUM001 (default: as the run's config says)",
    )
    parser.add_argument("--ignore", metavar="CODES", type=_codes, help="rules to leave out, in the same way")
    parser.add_argument(
        "--fail-on", choices=SEVERITIES, help="exit with 5 where a finding of this severity or above is open"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to write it (default: the terminal)")
    arguments = parser.parse_args(argv)
    diagnosis = diagnose(arguments.run, arguments.select, arguments.ignore)
    text = FORMATS[arguments.format](diagnosis)
    if arguments.output is None:
        print(text, end="")
    else:
        write(arguments.output, text)
    limit = arguments.fail_on
    bad = [
        each for each in diagnosis.findings if each["state"] == "open" and limit and at_least(each["severity"], limit)
    ]
    return StoppedByFinding.exit_code if bad else 0


def write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FtHostError(f"{path}: could not be written: {error.strerror or error}") from error


def _codes(text: str) -> list[str]:
    return [code.strip() for code in text.split(",") if code.strip()]
