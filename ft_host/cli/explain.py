"""`ft-host explain CODE`: the page of a rule."""

from __future__ import annotations

import argparse
import sys
import textwrap

from ft_host.diagnostics.collect import installed_rules
from ft_host.diagnostics.pages import page, terminal_text
from ft_host.errors import UsageError
from ft_host.util.console import show
from ft_host.util.text import nearest

HELP = "Explain what a rule detects, its causes and remedies."
WIDTH = 100


def run(argv: list[str]) -> int:
    """Return the exit code. Raises UsageError for an unknown code."""
    parser = argparse.ArgumentParser(prog="ft-host explain", description=HELP)
    parser.add_argument("code", metavar="CODE", help="as in a finding: GRPO001")
    code = parser.parse_args(argv).code.partition(":")[0].upper()
    owned, problems = installed_rules()
    found = next((each for each in owned if each[0].code == code), None)
    if found is None:
        for problem in problems:
            show(f"ft-host: warning: {problem}", sys.stderr)
        known = [rule.code for rule, _ in owned]
        raise UsageError(f"no rule {code}{nearest(code, known) or ''}; `ft-host rules` lists them")
    text = terminal_text(page(*found, [rule for rule, _ in owned]))
    show("\n".join(textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in text.splitlines()))
    return 0
