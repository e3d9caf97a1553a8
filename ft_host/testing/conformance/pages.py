"""The page of a check: `ft-host check --explain CHECK`, docs/checks/CHECK.md, and the help in SARIF."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

ASKED = {
    "package": "once of a package",
    "method": "of each method",
    "rollouts": "of each method that learns from rollouts",
    "backend": "of each backend",
    "diagnostics": "of each set of diagnostics",
}


def page(check: Check, caught: list[str] | None = None) -> str:
    """Return the page in Markdown. `caught`: what is wrong with packages of the host's tests that fail this check."""
    parts = [
        f"# {check.id}: {check.title}",
        f"Tier {check.tier}, asked {ASKED[check.about]}.",
        f"## Why\n\n{check.why}",
        f"## What it looks at\n\n{check.looks_at}",
        f"## What to do\n\n{check.mend}",
    ]
    if caught:
        parts.append("## What it has caught\n\n" + "\n".join(f"- {each}" for each in caught))
    return "\n\n".join(parts) + "\n"
