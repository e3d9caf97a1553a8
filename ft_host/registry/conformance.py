"""`conformance.json` of a package: how it ended what `ft-host check --record` asked of it. Read as a file: the package
isn't imported, nor torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_host.registry.catalog import PluginInfo
from ft_host.registry.metadata import normalise

FILE = "conformance.json"
FORMAT = 1  # of the file, and of `ft-host check --json`; see docs/check.md
RESULTS = ("passed", "declared", "left out", "failed", "error")


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a package has on record. With `problem`, the file can't be used and the rest is empty."""

    tier: str = ""
    passed: int = 0
    declared: int = 0  # can't be met, as the package says, with the reason
    left_out: int = 0  # there was nothing to look at
    version: str = ""  # of the package, when it was recorded
    host: str = ""  # the version of ft-host that asked
    date: str = ""  # 2026-11-29
    problem: str = ""

    def as_text(self, version: str) -> str:
        """Say it of the installed version: experimental 31/33, 2 declared (recorded for 0.3.0 with ft-host 1.0.0 on
        2026-11-29)."""
        if self.problem:
            return self.problem
        text = f"{self.tier} {self.passed}/{self.passed + self.declared}"
        text += f", {self.declared} declared" if self.declared else ""
        other = "" if self.version == version else f"another version, {self.version}, not for "
        return f"{text} (recorded for {other}{version} with ft-host {self.host} on {self.date})"


def package_folder(info: PluginInfo) -> Path | None:
    """The folder of the package of a plugin; None where it is one module, or a file of no distribution."""
    if not info.distribution:
        return None
    top = (info.value or info.config).partition(":")[0].partition(".")[0]
    return next((folder for folder in Path(info.location).parents if folder.name == top), None)


def recorded(info: PluginInfo) -> Recorded | None:
    """What the distribution of a plugin has on record, or None."""
    folder = package_folder(info)
    if folder is None or not (folder / FILE).is_file():
        return None
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return _read(found, info.distribution)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Recorded(problem=f"{folder / FILE} can't be read: {type(error).__name__}: {error}")


def _read(found: dict[str, Any], distribution: str) -> Recorded:
    if found["format"] != FORMAT:
        return Recorded(problem=f"{FILE} has format {found['format']}, and this ft-host reads {FORMAT}")
    if normalise(found["package"]) != normalise(distribution):
        return Recorded(problem=f"{FILE} is of {found['package']}, and this is {distribution}")
    ended = [check["result"] for check in found["checks"]]
    return Recorded(
        tier=found["tier"],
        passed=ended.count("passed"),
        declared=ended.count("declared"),
        left_out=ended.count("left out"),
        version=found["version"],
        host=found["versions"]["ft-host"],
        date=found["date"],
    )
