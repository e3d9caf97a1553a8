"""The fields of a config class, and whether a value fits one.

Longer than 300 lines: all knowledge of types is here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from dataclasses import dataclass
from typing import Any

from ft_host.config.deprecated import Deprecated, deprecations_of, renamed_fields
from ft_host.config.expand import Unknown, expand
from ft_host.config.old_names import old_names, warn
from ft_host.config.usual import Usual
from ft_host.config.values import value_hint
from ft_host.config.words import arms, expected, show, words_of
from ft_host.errors import PluginBroken
from ft_host.util.text import nearest

# The headings of help, starter file and reference, in order. A method's own fields come first.
GROUPS = {
    "method": "the method",
    "model": "model",
    "lora": "LoRA",
    "data": "data",
    "batches": "batches",
    "rollouts": "rollouts",
    "optimisation": "optimisation",
    "evaluation": "evaluation",
    "generation": "generation",
    "run": "run",
    "diagnostics": "diagnostics",
    "distribution": "distribution",
}
# Names that the command line or a config file uses otherwise.
RESERVED = ("method", "config", "resume", "dry_run", "restart", "take_over", "allow_changed", "help")
# The largest whole number of a field without a bound of its own: what torch, numpy and transformers can all hold.
LARGEST = 2**31 - 1
UNSET = ("none", "null")  # as text: unsets an optional field; TOML and flags have no null


REFUSED = object()  # marks a value that didn't fit, so that its field isn't reported as missing too


class Mismatch(Exception):
    """A value doesn't fit its field. The text says what was found and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a config class, as declared with `ft_host.config.option`."""

    name: str
    type: Any
    default: Any
    help: str
    group: str
    choices: tuple[Any, ...]
    ge: float | None
    gt: float | None
    le: float | None
    aliases: tuple[str, ...]
    also: dict[Any, Any]  # values of other tools, with ours
    was: tuple[str, ...]  # names from earlier versions, except those that other fields have now
    required: bool
    unless: str | None  # if this other field is set, this one isn't required
    example: str | None
    path: bool = False  # it names files or folders
    compared: bool = True  # a resumed run compares what they hold
    usual: tuple[Usual, ...] = ()  # ranges beyond which it is suspected
    deprecated: tuple[Deprecated, ...] = ()  # of its old names, or of itself, where it will go

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def arms(self) -> tuple[Any, ...]:
        """The allowed types, without None."""
        return tuple(arm for arm in arms(self.type) if arm is not type(None))

    @property
    def optional(self) -> bool:
        return type(None) in arms(self.type)

    @property
    def many(self) -> bool:
        """Whether a flag takes several values."""
        return typing.get_origin(self.arms[0]) is list


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


class Fields(dict[str, Field]):
    """The fields of a class by name. `elsewhere`: what its class says of names that other tools have and it lacks."""

    elsewhere: dict[str, str] = {}

    @property
    def of_run(self) -> bool:
        """Whether they are those of a run, and not of its backend or of a diagnostics plugin."""
        return "output_dir" in self


@functools.cache
def fields_of(config_class: type) -> Fields:
    """Return the fields by name, grouped in the order of `GROUPS`.

    Raises PluginBroken for a field that isn't declared with `option`, whose type a file can't hold, or whose name is
    taken: each is a mistake in the class's package.
    """
    hints = typing.get_type_hints(config_class)
    host: dict[str, Any] = {}  # types of the host's fields
    paths: set[str] = set()  # the host's fields that name files, also where a method declares them anew
    ignored: set[str] = set()  # those of them whose content isn't compared
    ranges: dict[str, tuple[Usual, ...]] = {}  # of the host's fields, those of the nearest class
    for base in config_class.__mro__:
        if base.__module__.partition(".")[0] == "ft_host" and dataclasses.is_dataclass(base):
            host = typing.get_type_hints(base) | host
            paths |= {each.name for each in dataclasses.fields(base) if each.metadata.get("path")}
            ignored |= {each.name for each in dataclasses.fields(base) if not each.metadata.get("compared", True)}
            given = {each.name: each.metadata.get("usual") for each in dataclasses.fields(base)}
            ranges = {name: usual for name, usual in given.items() if usual is not None} | ranges
    old = old_names(config_class)
    renamed = {name: each.name for each in dataclasses.fields(config_class) for name in each.metadata.get("was", ())}
    renamed |= {old: str(each.new) for old, each in renamed_fields(config_class).items()}
    refuse_stray(config_class)
    fields = []
    names: dict[str, str] = dict.fromkeys(RESERVED, "the command line")
    for field in dataclasses.fields(config_class):
        where = f"{config_class.__module__}.{config_class.__qualname__}.{field.name}"
        if "help" not in field.metadata:
            raise PluginBroken(f"{where} isn't declared with ft_host.config.option, so it has no text and no group")
        if field.metadata["group"] not in GROUPS:
            raise PluginBroken(f"{where}: no group {field.metadata['group']!r}; there are {', '.join(GROUPS)}")
        if not readable(hints[field.name]):
            raise PluginBroken(
                f"{where}: its type {field.type} can't be read from a file; use str, bool, int, float, list[...] and "
                "dict[str, ...] of them, and unions with None"
            )
        if not set(arms(hints[field.name])) <= set(arms(host.get(field.name, hints[field.name]))):
            raise PluginBroken(
                f"{where}: is {' or '.join(map(words_of, arms(hints[field.name])))}, and the host's field is "
                f"{' or '.join(map(words_of, arms(host[field.name])))}; a method may give it another default, and no "
                "other type"
            )
        for name in (field.name, *field.metadata["aliases"]):
            if name in names:
                raise PluginBroken(f"{where}: the name {name} is already taken by {names[name]}")
            names[name] = field.name
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        was = tuple(name for name, new in old.items() if new == field.name)
        if field.name in renamed and field.metadata["group"] not in ("method", "rollouts"):
            warn(where, f"the host's field {field.name}", renamed[field.name])  # declared anew for another default
        metadata = {**field.metadata, "was": was}
        metadata["path"] = metadata.get("path", False) or field.name in paths
        metadata["compared"] = metadata.get("compared", True) and field.name not in ignored
        metadata["deprecated"] = tuple(
            each
            for each in deprecations_of(config_class)
            if each.kind == "field" and (each.old in was or (each.new is None and each.old == field.name))
        )
        if metadata.get("usual") is None:
            metadata["usual"] = ranges.get(field.name, ())
        fields.append(Field(name=field.name, type=hints[field.name], default=default, **metadata))
    order = list(GROUPS)
    found = Fields((field.name, field) for field in sorted(fields, key=lambda field: order.index(field.group)))
    found.elsewhere = vars_of(config_class, "elsewhere")
    return found


def refuse_stray(config_class: type) -> None:
    """Raise PluginBroken where a class declares deprecated what isn't there."""
    here = {each.name for each in dataclasses.fields(config_class)}
    for each in deprecations_of(config_class):
        needed = each.new or each.old
        if each.kind == "field" and needed not in here:
            raise PluginBroken(
                f"{config_class.__module__}.{config_class.__qualname__}: deprecated: {each.old}: there is no field "
                f"{needed}{nearest(needed, here)}"
            )


def vars_of(config_class: type, name: str) -> dict[str, Any]:
    """Return the mapping that a class and its bases have under this name, the class's own first."""
    return {key: value for base in reversed(config_class.__mro__) for key, value in vars(base).get(name, {}).items()}


def names_of(fields: dict[str, Field]) -> dict[str, str]:
    """Return every name that may be written, with aliases and old names, mapped to the name of its field."""
    return {name: field.name for field in fields.values() for name in (field.name, *field.aliases, *field.was)}


def current_names(fields: dict[str, Field]) -> list[str]:
    """Return the names for hints: fields and aliases."""
    return [name for field in fields.values() for name in (field.name, *field.aliases)]


def readable(hint: Any) -> bool:
    """Return whether a file can hold a value of this type."""
    parts = arms(hint)
    if len(parts) > 1:
        return all(readable(part) for part in parts)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return readable(args[0])
    if origin is dict:
        return args[0] is str and readable(args[1])
    return hint in (str, bool, int, float, type(None), Any)


# ---------------------------------------------------------------- values


def meant(field: Field, value: Any) -> Any:
    """Return a value as this field has it: another tool's is ours, a text is a list of one text, and nothing is an
    empty list or mapping where that is the default."""
    hashable = isinstance(value, (str, int, float, bool, type(None)))
    for theirs, ours in field.also.items():
        if hashable and type(value) is type(theirs) and value == theirs:
            return ours
    if field.arms == (list[str],) and isinstance(value, str) and value:
        return [] if value.lower() in UNSET else [value]
    if value is None and field.default in ([], {}) and not field.optional:
        return field.default
    return value


def fit(field: Field, value: Any) -> Any:
    """Convert `value`, from a file or Python, to a value of this field. Strict: the text '8' is not a number.

    Raises Mismatch.
    """
    value = meant(field, value)
    fitted = convert(field.type, value)
    if isinstance(fitted, Wrong):
        where = f"{field.name}{fitted.path}: " if fitted.path else ""
        quoted = fitted.value is value and str in field.arms and isinstance(value, (bool, int, float))
        advice = "; in quotes it is a text" if quoted else ""
        raise Mismatch(f"{where}found {show(fitted.value)}, expected {expected(field)}{advice}")
    return bounded(field, fitted)


def bounded(field: Field, value: Any) -> Any:
    """Return `value` if it is one of the choices and within the bounds; of a field of paths, with them expanded. Raises
    Mismatch."""
    if field.path:
        try:
            return expand(value)
        except Unknown as error:
            raise Mismatch(str(error)) from error
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if field.choices and item not in field.choices:
            said = value_hint(field.name, item)
            near = f"; {said}" if said else nearest(item, field.choices)
            raise Mismatch(f"found {show(item)}, expected {expected(field)}{near}")
        if isinstance(item, int) and not isinstance(item, bool) and abs(item) > LARGEST and field.le is None:
            raise Mismatch(f"found {show(item)}, expected {expected(field)} of at most {LARGEST} in size")
        below = (field.ge is not None and item < field.ge) or (field.gt is not None and item <= field.gt)
        if below or (field.le is not None and item > field.le):
            raise Mismatch(f"found {show(item)}, expected {expected(field)}")
    return value


@dataclass(frozen=True)
class Wrong:
    """The part of a value that doesn't fit, and its place: "[2].weight", or "" for all of it."""

    value: Any
    path: str = ""


def convert(hint: Any, value: Any) -> Any:
    """Return `value` as `hint`, or `Wrong`. Integers are accepted for float; nothing else is converted."""
    parts = arms(hint)
    if len(parts) > 1:
        results = [convert(part, value) for part in parts]
        good = [result for result in results if not isinstance(result, Wrong)]
        if good:
            return good[0]
        # The arm that matched furthest into the value gives the best error.
        return max(results, key=lambda wrong: len(wrong.path))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and isinstance(value, list):
        items = [convert(args[0], item) for item in value]
        wrong = [Wrong(item.value, f"[{at}]{item.path}") for at, item in enumerate(items) if isinstance(item, Wrong)]
        return wrong[0] if wrong else items
    if origin is dict and isinstance(value, dict):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            return Wrong(bad[0], ".keys")
        values = {key: convert(args[1], item) for key, item in value.items()}
        wrong = [Wrong(item.value, f".{key}{item.path}") for key, item in values.items() if isinstance(item, Wrong)]
        return wrong[0] if wrong else values
    if hint is Any:
        return value if jsonable(value) else Wrong(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool, type(None)) and isinstance(value, hint):
        return value
    return Wrong(value)


def jsonable(value: Any) -> bool:
    """Return whether run.json can hold it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
