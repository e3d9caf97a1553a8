"""The surface of the host itself: hooks, the three doors, fields, commands, exit codes, files of a run, rules."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ft_host import errors, hooks
from ft_host._version import __version__
from ft_host.config import RunConfig
from ft_host.config.deprecated import HOST, Deprecated
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.rules import RULES
from ft_host.registry.metadata import stability_of
from ft_host.rundir import folder
from ft_host.surface import metric_names
from ft_host.surface.shapes import FORMAT, deprecations, described, fields, rules
from ft_host.util import moved

DOORS = ("ft_host.api", "ft_host.diagnostics", "ft_host.testing")
HOOKS = ("data", "loss", "generation", "diagnostics")


def host_surface(commands: dict[str, list[str]]) -> dict[str, Any]:
    """Return what the host promises to packages, users and programs. `commands`: those of the command line, each with
    its options. Imports torch, since the door to tests does."""
    from importlib_metadata import metadata

    return {
        "format": FORMAT,
        "distribution": "ft-host",
        "version": __version__,
        "stability": stability_of(metadata("ft-host").get_all("Classifier") or [], __version__)[0],
        "hooks": {name: found for module in HOOKS for name, found in hooks_of(module).items()},
        "doors": {door: door_of(door) for door in DOORS},
        "fields": fields(RunConfig),
        "rollout_fields": fields(RolloutConfig, beyond=RunConfig),
        "commands": commands,
        "exit_codes": exit_codes(),
        "metrics": sorted((*metric_names.LINE, *metric_names.EVERY_RUN)),
        "rollout_metrics": sorted(metric_names.ROLLOUTS),
        "run_folder": {"format": folder.FORMAT, "files": files_of(folder)},
        "deprecations": deprecations([*HOST, *moved_names()]),
        "rules": rules(RULES),
    } | kept()


def kept() -> dict[str, Any]:
    """What a checkpoint holds, and what is written at the end. Imports torch."""
    from ft_host.models.save import LAYOUT
    from ft_host.training import checkpoint
    from ft_host.training.loop import Progress

    return {
        "checkpoint": {
            "files": files_of(checkpoint),
            "progress.json": list(checkpoint.PROGRESS),
            "progress": sorted(each.name for each in dataclasses.fields(Progress)),
        },
        "export": {name: list(files) for name, files in LAYOUT.items()},
    }


def hooks_of(module: str) -> dict[str, list[str]]:
    """Return the hooks that a module of specifications has, with their arguments."""
    found = vars(importlib.import_module(f"{hooks.__name__}.{module}"))
    return {
        name: sorted(inspect.signature(value).parameters)
        for name, value in found.items()
        if name.startswith("ft_") and inspect.isfunction(value)
    }


def door_of(door: str) -> dict[str, Any]:
    """Return what a door offers, by name."""
    module = importlib.import_module(door)
    return {name: described(getattr(module, name)) for name in sorted(module.__all__)}


def exit_codes() -> dict[str, int]:
    """Return the exit code of each error of `ft_host.errors`."""
    every = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    return {name: value.exit_code for name, value in sorted(every.items()) if issubclass(value, errors.FtHostError)}


def files_of(module: ModuleType) -> list[str]:
    """Return the files and folders of the list at the top of a module."""
    return sorted(re.findall(r"^ *([\w.*-]+(?:\.\w+|/))(?= {2})", module.__doc__ or "", re.MULTILINE))


def moved_names() -> Iterator[Deprecated]:
    """What `ft_host.util.moved` still answers to, in the form of all deprecations."""
    yield from (_moved("module", old, new) for old, new in moved.MODULES.items())
    for kind, table in (("name", moved.NAMES), ("keyword", moved.KEYWORDS), ("attribute", moved.ATTRIBUTES)):
        for owner, names in table.items():
            yield from (_moved(kind, f"{owner}.{old}", new) for old, new in names.items())


def _moved(kind: str, old: str, new: str) -> Deprecated:
    return Deprecated(old=old, new=new.replace(":", "."), since="0.5.0", removed_in="2.0.0", kind=kind)
