"""`ft-host report`: the page of a run."""

from __future__ import annotations

import argparse

from ft_host.report import write_report
from ft_host.util.console import show

HELP = "Write a page with a run's results, curves, samples and settings."


def run(argv: list[str]) -> int:
    """Return the exit code. Raises FtHostError where the folder isn't a run, has nothing to show, or can't
    be written.
    """
    parser = argparse.ArgumentParser(
        prog="ft-host report",
        description=HELP + " One self-contained HTML file; also for a run that failed or still runs.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--output", metavar="FILE", help="output file (default: RUN/report.html)")
    arguments = parser.parse_args(argv)
    show(str(write_report(arguments.run, arguments.output)))
    return 0
