"""How checks ended, as JSON: what `ft-host check --json` prints, and `--record` keeps. See docs/check.md."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ft_host._version import __version__
from ft_host.registry.conformance import FORMAT
from ft_host.testing.conformance.check import Check, Outcome, group_of

if TYPE_CHECKING:
    from ft_host.testing.conformance.run import Suite

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets")


def document(suite: Suite, tier: str, found: Iterable[Outcome]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "package": suite.name,
        "version": suite.version,
        "stability": suite.plugins[0].stability,
        "tier": tier,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "checks": [entry(outcome) for outcome in found],
    }


def versions() -> dict[str, str]:
    """Of what decides the numbers of a run."""
    import importlib_metadata

    libraries = {name: importlib_metadata.version(name) for name in LIBRARIES}
    return {"ft-host": __version__, "python": platform.python_version(), **libraries}


def entry(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.check.id,
        "group": group_of(outcome.check),
        "tier": outcome.check.tier,
        "about": outcome.check.about,
        "plugin": outcome.plugin,
        "result": outcome.result,
        "said": outcome.said,
        "place": f"{outcome.place[0]}:{outcome.place[1]}" if outcome.place else None,
        "seconds": round(outcome.seconds, 3),
        "figures": outcome.figures,
    }


def described(check: Check) -> dict[str, Any]:
    """A check of `--list --json`."""
    return {
        "id": check.id,
        "group": group_of(check),
        "tier": check.tier,
        "about": check.about,
        "title": check.title,
        "why": check.why,
        "looks_at": check.looks_at,
        "mend": check.mend,
        "page": check.page,
    }
