"""`ft-host plugins --available`: packages that somebody has published, from an index."""

from __future__ import annotations

from typing import Any

from ft_host._version import __version__
from ft_host.registry.available import Listed, packages
from ft_host.registry.catalog import HOST, catalog
from ft_host.registry.metadata import normalise
from ft_host.util.jsonl import json_text

FORMAT = 1  # of --json; see docs/packages.md
COLUMNS = ("package", "offers", "stability", "installed", "last check")


def told(place: str | None, as_json: bool) -> str:
    """Return the packages of an index as a table with what each does and where it is, or as JSON. Raises what
    `packages` raises."""
    listed, here = packages(place), installed()
    if as_json:
        return json_text(document(listed, here), indent=2)
    rows = [
        (
            each.name,
            ", ".join(each.offers),
            each.stability,
            here.get(normalise(each.name), "no"),
            f"{each.checked.date}, {each.checked.version}" if each.checked else "never",
        )
        for each in listed
    ]
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [COLUMNS, *rows]]
    about = [f"{each.name}: {each.what.rstrip('.')}. {each.link}" for each in listed]
    return "\n".join([*lines, "", *about])


def installed() -> dict[str, str]:
    """Return the versions of installed packages with plugins, by name."""
    return {normalise(info.distribution): info.version for info in catalog()}


def document(listed: list[Listed], here: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "host": {"distribution": HOST, "version": __version__},
        "available": [
            {
                "name": each.name,
                "what": each.what,
                "offers": list(each.offers),
                "stability": each.stability,
                "link": each.link,
                "installed": here.get(normalise(each.name)),
                "checked": each.checked and dict(vars(each.checked)),
            }
            for each in listed
        ],
    }
