"""`ft-host patch RUN FINDING > next.yaml`: a run file that mends what a run has found. Imports no torch."""

from __future__ import annotations

import argparse

from ft_host.diagnostics.patch import chosen_finding, chosen_remedy, patched, run_file
from ft_host.diagnostics.replay import diagnose
from ft_host.errors import UsageError
from ft_host.report import read_run

HELP = "Print the run's config with a remedy of a finding applied, as a run file."


def run(argv: list[str]) -> int:
    """Returns the exit code. Raises UsageError where the finding has no remedy that is a change of the config."""
    parser = argparse.ArgumentParser(
        prog="ft-host patch",
        description=HELP + " `ft-host train` of it makes a new run that names this one as its parent.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("finding", metavar="FINDING", help="a code or fingerprint, as `ft-host diagnose` shows it")
    parser.add_argument("--remedy", metavar="N", type=int, help="which one (default: the first that changes the config)")
    parser.add_argument(
        "--from-checkpoint", action="store_true",
        help="go on from the newest checkpoint before the finding, where the remedy allows that",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    record = read_run(arguments.run)
    recorded = list(record.findings.values())
    try:
        finding = chosen_finding(recorded, arguments.finding)
    except UsageError:
        if any(arguments.finding in (each["code"], each["fingerprint"]) for each in recorded):
            raise  # several of one code
        finding = chosen_finding(diagnose(arguments.run).findings, arguments.finding)
    remedy = chosen_remedy(finding, arguments.remedy)
    values = patched(record, finding, remedy, arguments.from_checkpoint)
    print(run_file(record, finding, remedy, values), end="")
    return 0
