"""From a file and flags to a config with the origin of each value. Reports all problems at once."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config import old_names
from ft_host.config.adapters import take_adapter
from ft_host.config.answers import answer, unknown
from ft_host.config.fields import REFUSED, UNSET, Field, Fields, Mismatch, fields_of, fit, flag_of, names_of
from ft_host.config.files import ConfigFile, read_file
from ft_host.config.flags import read_flags
from ft_host.config.paths import path_problems
from ft_host.config.renamed import already
from ft_host.config.run import checked_by_host
from ft_host.errors import ConfigError, PluginBroken

if TYPE_CHECKING:
    from ft_host.config.run import RunConfig


@dataclass(frozen=True)
class Resolved:
    """A config that has passed every check that needs nothing heavy.

    `origins` has for each field "default", "run.yaml:12", "flag --learning-rate" or "python".
    """

    config: RunConfig
    origins: dict[str, str]


def resolve(
    config_class: type[RunConfig],
    file: str | Path | ConfigFile | None = None,
    flags: list[str] | dict[str, Any] = (),
    *,
    method: str | None = None,
) -> Resolved:
    """Return the config of a file and flags; flags override the file.

    `flags` is a list as on the command line, or a dict of Python values. With `method`, a file for another method is
    refused. Raises ConfigError that names every problem with its file and line or its flag.
    """
    fields = fields_of(config_class)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(fields, "default")
    problems: list[str] = []
    if file is not None:
        read = file if isinstance(file, ConfigFile) else read_file(file)
        problems += read.problems
        if method is not None and read.method is not None and read.method != method:
            where = read.where("method")
            problems.append(f"{where}: method: the file is for {read.method}, the command line says {method}")
        settings, wrong = read_values(read, fields)
        problems += wrong
        values |= {name: value for name, (value, _) in settings.items()}
        origins |= {name: where for name, (_, where) in settings.items()}
    if isinstance(flags, dict):
        given, wrong = python_values(flags, fields)
        origins |= dict.fromkeys(given, "python")
    else:
        given, wrong = read_flags(list(flags), fields)
        origins |= {name: f"flag {flag_of(name)}" for name in given}
    problems += wrong
    values |= given
    problems += missing_required(values, fields)
    refuse(problems)
    defaults = {name: copy.deepcopy(field.default) for name, field in fields.items()}
    config = config_class(**(defaults | values))  # whole, so that what was warned of isn't warned of again
    check_whole(config, origins)
    take_adapter(config, origins)
    return Resolved(config, origins)


def check(config: RunConfig) -> dict[str, str]:
    """Check a config made in Python as `resolve` checks one from a file. Returns the origin of each field.

    Raises ConfigError that names every problem.
    """
    fields = fields_of(type(config))
    problems = []
    for name in vars(config):
        if name not in fields:
            said = answer(name, fields)
            problems.append(f"{name}: {type(config).__name__} has no such field" + (f"; {said}" if said else ""))
    values, wrong = python_values({name: getattr(config, name) for name in fields}, fields)
    problems += wrong
    problems += missing_required(values, fields)
    refuse(problems)
    for name, value in values.items():  # paths are expanded, and another tool's value of a field is ours from here on
        if getattr(config, name) != value:
            setattr(config, name, value)
    origins = {name: "default" if values[name] == fields[name].default else "python" for name in fields}
    check_whole(config, origins)
    take_adapter(config, origins)
    return origins


# ---------------------------------------------------------------- parts


def read_values(read: ConfigFile, fields: Fields) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Return the fields of a file as {name: (value, where)}, and its problems."""
    names = names_of(fields)
    values: dict[str, tuple[Any, str]] = {}
    problems = []
    for written, value in read.values.items():
        where = read.where(written)
        if written not in names:
            if not (fields.of_run and already(written, value)):
                problems.append(f"{where}: {unknown(written, fields)}")
            continue
        name = names[written]
        if name in values:
            problems.append(f"{where}: {written} is {name}, which is already set in {values[name][1]}")
            continue
        old_names.warn_of_field(where, written, fields[name])
        old_names.warn_of_value(where, fields[name], value)
        if fields[name].optional and isinstance(value, str) and value.lower() in UNSET:
            value = None
        try:
            values[name] = (fit(fields[name], value), where)
        except Mismatch as error:
            problems.append(f"{where}: {written}: {error}")
            values[name] = (REFUSED, where)
    return values, problems


def python_values(values: dict[str, Any], fields: Fields) -> tuple[dict[str, Any], list[str]]:
    names = names_of(fields)
    found, problems = {}, []
    for written, value in values.items():
        if written not in names:
            if not (fields.of_run and already(written, value)):
                problems.append(unknown(written, fields))
            continue
        name = names[written]
        if name in found:
            problems.append(f"{written} is {name}, which is given too")
            continue
        old_names.warn_of_field("config", written, fields[name])
        old_names.warn_of_value("config", fields[name], value)
        try:
            found[name] = fit(fields[name], value)
        except Mismatch as error:
            problems.append(f"{written}: {error}")
            found[name] = REFUSED
    return found, problems


def missing_required(values: dict[str, Any], fields: dict[str, Field]) -> list[str]:
    """Return a line for each required field that is absent or empty."""
    return [
        f"{field.name} is required: give {field.flag} or {field.name}: in the config file, for instance "
        f"{field.flag} {field.example}" + (f" (or {field.unless})" if field.unless else "")
        for field in fields.values()
        if field.required and not values.get(field.name) and not values.get(field.unless)
    ]


def refuse(problems: list[str]) -> None:
    """Raise ConfigError for all problems, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems:\n" + "\n".join(f"  {problem}" for problem in problems))


def check_whole(config: RunConfig, origins: dict[str, str]) -> None:
    """Check what no single field shows: combinations that the config refuses, and files that must exist."""
    config.locked_fields = old_names.current(config.locked_fields, type(config), "locked_fields")
    checked_by_host.discard(id(config))
    try:
        config.check()
        if id(config) not in checked_by_host:
            kind = type(config)
            raise PluginBroken(
                f"{kind.__module__}:{kind.__qualname__}: its check doesn't call super().check(), so that what the host "
                "refuses isn't refused"
            )
    except ConfigError as error:
        named = [name for name in re.findall(r"\w+", str(error)) if origins.get(name, "default") != "default"]
        if not named:
            raise
        said = ", ".join(f"{name} is from {origins[name]}" for name in dict.fromkeys(named))
        raise ConfigError(f"{error} ({said})") from error
    refuse([f"{place(name, origins[name])}: {problem}" for name, problem in path_problems(config, origins)])


def place(name: str, origin: str) -> str:
    """Return where to change a field: "run.yaml:12: model", "--model" or "model"."""
    if origin.startswith("flag "):
        return origin.removeprefix("flag ")
    return name if origin in ("default", "python") else f"{origin}: {name}"
