"""Old names of fields: those that `deprecated` of a class has with a new one (`ft_host.config.deprecated`), and
`option(..., was=("timeout",))`. They work in files, as flags, as keywords and as attributes, with a warning that has
the new name. The host's go in 2.0.

A class that declares a field with an old name means its own field, so there the old name isn't the host's: in a method
with rollouts `temperature` is the sampling temperature of rollouts.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ft_host.config.deprecated import deprecations_of, renamed_fields
from ft_host.config.renamed import already
from ft_host.errors import ConfigError, UnknownField

if TYPE_CHECKING:
    from ft_host.config.fields import Field

# Sampling in evaluation. Until 0.4 only runs without rollouts had these names.
SAMPLING = ("temperature", "top_p", "top_k")


class RenamedField(FutureWarning):
    """A field is named by its name from an earlier version."""


@functools.cache
def old_names(config_class: type) -> dict[str, str]:
    """Return the old names of a class's fields, each with the new one."""
    fields = dataclasses.fields(config_class)
    taken = {name for field in fields for name in (field.name, *field.metadata.get("aliases", ()))}
    found = {old: field.name for field in fields for old in field.metadata.get("was", ())}
    found |= {old: str(each.new) for old, each in renamed_fields(config_class).items()}
    return {old: new for old, new in found.items() if old not in taken}


@functools.cache
def going(config_class: type) -> dict[str, str]:
    """Return the fields of a class that will go without a successor, each with the warning, which lacks its place."""
    every = deprecations_of(config_class)
    return {each.old: each.said() for each in every if each.kind == "field" and each.new is None}


def warn(place: str, old: str, new: str, stacklevel: int = 2, said: str = "") -> None:
    """Warn that `place` has an old name. `stacklevel` as in warnings.warn, counted from the caller. `said`: in place of
    the usual words."""
    warnings.warn(f"{place}: {said or f'{old} is called {new} now'}", RenamedField, stacklevel + 1)


def warn_of_field(place: str, written: str, field: Field, stacklevel: int = 2) -> None:
    """Warn where a field is set by an old name, as `written` there, or is one that will go."""
    bare = written.removeprefix("--").replace("-", "_")
    new = field.flag if written.startswith("--") else field.name
    for each in field.deprecated:
        if each.old in (bare, bare.removeprefix("no_")) and each.kind == "field":
            warn(place, written, new, stacklevel + 1, each.said(written, new))
            return
    if bare in field.was:
        warn(place, written, new, stacklevel + 1)


def warn_of_value(place: str, field: Field, value: Any) -> None:
    """Warn where a value is another tool's and ours is written otherwise."""
    for theirs, ours in field.also.items():
        if type(value) is type(theirs) and value == theirs and value is not None:
            word = str(value).lower() if isinstance(value, bool) else value
            warnings.warn(f"{place}: {field.name}: {word} is {ours} here", RenamedField, 3)


def of_record(values: dict[str, Any], table: dict[str, str]) -> dict[str, str]:
    """Return the old names in a recorded config, `values` by name, each with the new one. `table`: all old names.

    A record may not say which class it belongs to. A record of 0.4 with rollouts has an `eval_temperature`, and so has
    every current one: there the names of `SAMPLING` are fields.
    """
    kept = SAMPLING if "eval_temperature" in values else ()
    return {old: new for old, new in table.items() if old in values and new not in values and old not in kept}


def current(names: Iterable[str], config_class: type, place: str) -> list[str]:
    """Return the current names of fields that a user wrote as values. Warns of each old name."""
    table, found = old_names(config_class), []
    for name in names:
        if name in table:
            warn(place, name, table[name], 3)
        found.append(table.get(name, name))
    return found


@functools.cache
def keywords(config_class: type) -> dict[str, str]:
    """Return the names that a class's fields may have as keywords, aliases included, each with the field's own."""
    fields = [field for field in dataclasses.fields(config_class) if field.init]
    return {name: field.name for field in fields for name in (field.name, *field.metadata.get("aliases", ()))}


def said_of(config_class: type, old: str) -> str:
    """Return the warning about an old name, without its place; "" for one that says nothing but its new name."""
    found = renamed_fields(config_class).get(old)
    return found.said() if found else ""


def refusal(name: str, config_class: type) -> str:
    """Return what is said of a keyword that no field has."""
    from ft_host.config.answers import unknown  # which are above
    from ft_host.config.fields import fields_of

    return unknown(name, fields_of(config_class))


class _Keywords(type):
    """Accepts old names as keywords when a class is called."""

    def __call__(cls, *args: Any, **given: Any) -> Any:
        for old, new in old_names(cls).items():
            if old not in given:
                continue
            if new in given and len(given) <= len(dataclasses.fields(cls)):  # dataclasses.replace passes every field
                raise ConfigError(f"{cls.__name__}: {old} is called {new} now, and both are given")
            warn(cls.__name__, old, new, 2, said_of(cls, old))
            given[new] = given.pop(old)
        if len(given) < len(dataclasses.fields(cls)):
            for name in given.keys() & going(cls).keys():
                if given[name] != cls.__dataclass_fields__[name].default:  # as records of older runs have it
                    warn(cls.__name__, name, "", 2, going(cls)[name])
        names = keywords(cls)
        for name in [name for name in given if names.get(name) != name]:
            value, field = given.pop(name), names.get(name)
            if field is None:
                if not already(name, value):
                    raise UnknownField(f"{cls.__name__}: {refusal(name, cls)}")
            elif field in given:
                raise ConfigError(f"{cls.__name__}: {name} is {field}, which is given too")
            else:
                given[field] = value
        return super().__call__(*args, **given)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of `__init__`, which `__call__` would hide."""
        whole = inspect.signature(cls.__init__)
        return whole.replace(parameters=list(whole.parameters.values())[1:])


class OldNames(metaclass=type if TYPE_CHECKING else _Keywords):  # a type checker knows the names of today alone
    """A dataclass of fields whose old names still work."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            new = old_names(type(self)).get(name)
            if new is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            warn(type(self).__name__, name, new, 2, said_of(type(self), name))
            return getattr(self, new)

    def __setattr__(self, name: str, value: Any) -> None:
        new = old_names(type(self)).get(name)
        if new is not None:
            warn(type(self).__name__, name, new, 2, said_of(type(self), name))
        super().__setattr__(new or name, value)
