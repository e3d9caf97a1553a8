"""`ft-host check --record`: `conformance.json` in the package, as evidence that it ships, and what is recorded beside
it.

A record is of one version of the package, and of a suite in which nothing failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.errors import UsageError
from ft_host.registry.conformance import FILE
from ft_host.testing.conformance.check import ERROR, FAILED, Outcome
from ft_host.testing.conformance.checks import recorded
from ft_host.testing.conformance.document import document
from ft_host.testing.conformance.surroundings import surroundings
from ft_host.util.imports import cause
from ft_host.util.jsonl import json_text

if TYPE_CHECKING:
    from ft_host.testing.conformance.run import Suite

# What checks compare with, by the file's name in the package: made where there is none, before they are asked, and kept
# as it is where there is one, so that a number that has moved fails its check. None: the package has nothing of it.
# Whoever means the change deletes the file.
FILES: dict[str, Callable[[Suite], dict[str, Any] | None]] = {recorded.FILE: recorded.golden}


def recordable(suite: Suite) -> Path:
    """The folder that the record goes to. Raises UsageError where there is none, or it can't be written."""
    if suite.package is None:
        raise UsageError(f"--record: {suite.name} is no package: a file can't carry a record; `ft-host new` makes one")
    if not os.access(suite.package, os.W_OK):
        raise UsageError(f"--record: can't write to {suite.package}; install the package editable: pip install -e .")
    return suite.package


def record_files(suite: Suite) -> list[Path]:
    """Make the files of `FILES` that the package lacks. Gives those that were made. Raises UsageError where the
    package fails meanwhile; nothing is left then."""
    folder = recordable(suite)
    lacking = {name: make for name, make in FILES.items() if not (folder / name).exists()}
    values = {}
    for name, make in lacking.items():
        try:
            with surroundings(suite.folder / "cache"):
                values[name] = make(suite)
        except Exception as error:
            raise UsageError(
                f"--record: {name} can't be made: {cause(error)}\nWithout --record, checks say what is wrong"
            ) from error
    made = [folder / name for name, value in values.items() if value is not None]
    for file in made:
        file.write_text(json_text(values[file.name], indent=1) + "\n", encoding="utf-8")
    return made


def record(suite: Suite, tier: str, found: Iterable[Outcome]) -> Path:
    """Write how the checks of a tier ended. Raises UsageError where one has failed, or nothing can be written."""
    found = list(found)
    failed = [outcome.name for outcome in found if outcome.result in (FAILED, ERROR)]
    if failed:
        raise UsageError(f"--record: nothing is recorded, since {', '.join(failed)} failed")
    value = document(suite, tier, found)
    for entry in value["checks"]:
        del entry["seconds"]  # of this machine, at this hour
    path = recordable(suite) / FILE
    path.write_text(json_text(value, indent=1) + "\n", encoding="utf-8")
    return path
