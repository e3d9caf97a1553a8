"""`ft-host rules`: the rules that check runs."""

from __future__ import annotations

import argparse
import sys

from ft_host.diagnostics.collect import Owned, installed_rules, not_about
from ft_host.diagnostics.rule import STAGES
from ft_host.registry import find
from ft_host.rundir import format as fmt
from ft_host.util.console import show
from ft_host.util.jsonl import json_text

HELP = "List the rules of the host and of all installed plugins."


def run(argv: list[str]) -> int:
    """Return the exit code. Raises FtHostError for an unknown method."""
    parser = argparse.ArgumentParser(
        prog="ft-host rules",
        description=HELP
        + " `ft-host explain CODE` gives the page of one. Imports the plugins' modules with rules, and "
        "no method unless its rules are in the same module.",
    )
    parser.add_argument("--method", metavar="METHOD", help="the host's rules and those of this method")
    parser.add_argument("--stage", choices=STAGES, help="when they are tested")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    arguments = parser.parse_args(argv)
    owned, problems = installed_rules(arguments.method)
    reasons = not_about(find("method", arguments.method), owned) if arguments.method else {}
    for problem in problems:
        show(f"ft-host: warning: {problem}", sys.stderr)
    shown = [each for each in owned if arguments.stage in (None, each[0].stage)]
    if arguments.json:
        print(json_text([_told(each) | _about(each, reasons) for each in shown], indent=2))
    else:
        show(_listing([each for each in shown if each[0].code not in reasons]))
        for rule, _ in shown:
            if rule.code in reasons:
                show(f"{rule.code} ({rule.title}) is left out: {reasons[rule.code]}")
    return 0


def _about(owned: Owned, reasons: dict[str, str]) -> dict[str, object]:
    """Why a method leaves the rule out; null where it doesn't."""
    return {"not_about": reasons.get(owned[0].code)}


def _told(owned: Owned) -> dict[str, object]:
    rule, plugin = owned
    return {
        "code": rule.code,
        "title": rule.title,
        "severity": rule.severity,
        "stage": rule.stage,
        "plugin": plugin,
        "needs": list(rule.needs),
        "fields": list(rule.fields),
        "levels": list(rule.levels),
        "mutes": list(rule.mutes),
        "follows_from": list(rule.follows_from),
        "window": rule.window,
        "share": rule.share,
        "least": rule.least,
        "when": rule.when,
        "why": rule.why,
        "remedy": rule.remedy,
        "source": rule.source,
    }


def _listing(shown: list[Owned]) -> str:
    if not shown:
        return "No rules."
    rows = [[rule.code, rule.severity, rule.stage, rule.title, plugin] for rule, plugin in shown]
    return fmt.table(["CODE", "SEVERITY", "STAGE", "TITLE", "PLUGIN"], rows)
