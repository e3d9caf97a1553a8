"""Parts of a surface: config fields, hooks, signatures, rules."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any, get_origin

from ft_host.config.deprecated import Deprecated
from ft_host.config.fields import fields_of
from ft_host.config.schema import property_of
from ft_host.diagnostics.rule import Rule

FORMAT = 1  # of the JSON: rises when a key is removed, renamed, or changes its meaning


def fields(config_class: type, beyond: type | None = None) -> dict[str, dict[str, Any]]:
    """Return what a user may write for each field: its shape (as in JSON schema, with the default), whether it is
    required, and its other names. `beyond`: leave out the fields that this class has in the same form."""
    shared = {} if beyond is None else {name: field_of(each) for name, each in fields_of(beyond).items()}
    found = {name: field_of(each) for name, each in fields_of(config_class).items()}
    return {name: each for name, each in found.items() if each != shared.get(name)}


def field_of(field: Any) -> dict[str, Any]:
    shape = {key: value for key, value in property_of(field).items() if key not in ("description", "examples")}
    named = {"aliases": sorted(field.aliases), "was": sorted(field.was)}
    return shape | {"required": field.required} | {key: value for key, value in named.items() if value}


def hooks(module: ModuleType) -> dict[str, list[str]]:
    """Return the hooks that a plugin's module answers, each with the arguments that it takes, in order of name."""
    return {
        name: sorted(inspect.signature(value).parameters)
        for name, value in sorted(vars(module).items())
        if name.startswith("ft_") and inspect.isfunction(value)
    }


def rules(found: Iterable[Rule]) -> dict[str, str]:
    """Return the titles of rules by code."""
    return {rule.code: rule.title for rule in sorted(found, key=lambda rule: rule.code)}


def deprecations(found: Iterable[Deprecated]) -> list[dict[str, Any]]:
    """Return what is going to go, as JSON, in order of kind and name."""
    return [dataclasses.asdict(each) for each in sorted(found, key=lambda each: (each.kind, each.old))]


def described(value: Any) -> Any:
    """Return how a public name is used: parameters of a function; parameters, attributes and methods of a class; the
    value of a constant."""
    if inspect.isclass(value):
        return {"class": parameters(value), "members": members(value)}
    if callable(value):
        return {"function": parameters(value)}
    return {"value": value if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__}


def parameters(value: Any) -> dict[str, dict[str, Any]]:
    """Return the parameters of a function or class by name, in order: kind, and the default if there is one."""
    if get_origin(value) is not None:
        return {}  # an alias of a type, which Python 3.13 gives a signature
    try:
        signature = inspect.signature(value)
    except ValueError:  # a class of C, or an enumeration: nothing to call it with
        return {}
    found = {}
    for name, each in signature.parameters.items():
        found[name] = {"kind": each.kind.description}
        if each.default is not inspect.Parameter.empty:
            found[name]["default"] = stable(each.default)
    return found


def members(value: type) -> dict[str, Any]:
    """Return the public attributes and methods that a class of this project has, with those of its bases here."""
    found: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        if base.__module__.partition(".")[0] != "ft_host":
            continue  # what a class of a library has is the library's promise
        names = [each.name for each in dataclasses.fields(base)] if dataclasses.is_dataclass(base) else []
        for name in [*names, *vars(base)]:
            if name.startswith("_") and name != "__call__":
                continue
            member = vars(base).get(name)
            call = inspect.isfunction(member) or isinstance(member, staticmethod | classmethod)
            found[name] = {"method": parameters(getattr(base, name))} if call else "attribute"
    return dict(sorted(found.items()))


def stable(value: Any) -> Any:
    """Return a default as text that is the same in each process: no addresses, sets in order."""
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, list | tuple):
        return [stable(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, dict):
        return {str(key): stable(each) for key, each in value.items()}
    return value.__qualname__ if callable(value) else type(value).__qualname__
