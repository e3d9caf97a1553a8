"""The surface of the host itself: hooks, the three doors, fields, commands, exit codes, files of a run, rules."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from ft_host import errors, hooks
from ft_host._version import __version__
from ft_host.config import RunConfig
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.rules import RULES
from ft_host.registry.metadata import stability_of
from ft_host.rundir import folder
from ft_host.surface import metric_names
from ft_host.surface.shapes import FORMAT, described, fields, rules

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
        "run_folder": {"format": folder.FORMAT, "files": files_of_a_run()},
        "rules": rules(RULES),
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


def files_of_a_run() -> list[str]:
    """Return the files and folders that a run may have, from the list at the top of `ft_host.rundir.folder`."""
    return sorted(re.findall(r"^([\w.*-]+(?:\.\w+|/))(?= {2})", folder.__doc__ or "", re.MULTILINE))
