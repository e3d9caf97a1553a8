"""`ft-host patch RUN FINDING > next.yaml`: a run file that mends what a run has found. Imports no torch."""

from __future__ import annotations

import argparse

from ft_host.diagnostics.patch import chosen_finding, chosen_remedy, commented, patched
from ft_host.diagnostics.replay import diagnose
from ft_host.report import read_run
from ft_host.util.console import show

HELP = "Print the run's config with a remedy of a finding applied, as a run file."


def run(argv: list[str]) -> int:
    """Returns the exit code. Raises UsageError where the finding has no remedy that is a change of the config."""
    parser = argparse.ArgumentParser(
        prog="ft-host patch",
        description=HELP + " `ft-host train` with it makes a new run that names this one as its parent.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("finding", metavar="FINDING", help="a code or fingerprint, as `ft-host diagnose` shows it")
    parser.add_argument(
        "--remedy", metavar="N", type=int, help="which one (default: the first that changes the config)"
    )
    parser.add_argument(
        "--from-checkpoint",
        action="store_true",
        help="go on from the newest checkpoint before the finding, if the remedy allows it",
    )
    arguments = parser.parse_args(argv)
    record = read_run(arguments.run)
    found = record.findings
    if not any(arguments.finding in (fingerprint, each["code"]) for fingerprint, each in found.items()):
        found = found | {each["fingerprint"]: each for each in diagnose(arguments.run).findings}
    finding = chosen_finding(list(found.values()), arguments.finding)
    remedy = chosen_remedy(finding, arguments.remedy)
    values = patched(record, finding, remedy, arguments.from_checkpoint)
    show(commented(record, finding, remedy, values), end="")
    return 0
