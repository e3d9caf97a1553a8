"""Fields of other tools as fields of a method here: the same name, another name, another form, or none, with the
reason."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ft_host.config import RunConfig
from ft_host.config.answers import answer
from ft_host.config.fields import Fields, Mismatch, fields_of, fit, vars_of
from ft_host.config.renamed import RENAMED, already
from ft_host.config.resolve import missing_required
from ft_host.config.text import yaml_text
from ft_host.errors import ConfigError
from ft_host.migrate.forms import FORMS, Values, together
from ft_host.migrate.sources import Found

UNKNOWN = "no field of this name is known"


@dataclass
class Translated:
    """`taken`: our fields with their values and a comment, empty where name and value are the same. `defaults`: of
    fields that weren't given, the other tool's defaults that change the run. `left`: what has no counterpart, and why.
    `missing`: what a run still needs."""

    taken: dict[str, tuple[Any, str]] = field(default_factory=dict)
    defaults: dict[str, tuple[Any, str]] = field(default_factory=dict)
    left: list[tuple[str, Any, str]] = field(default_factory=list)
    same: list[str] = field(default_factory=list)  # what is done here anyway
    missing: list[str] = field(default_factory=list)

    @property
    def values(self) -> Values:
        return {name: value for name, (value, _) in (self.taken | self.defaults).items()}


def translate(found: Found, config_class: type[RunConfig]) -> Translated:
    """Return what was found in the fields of this class. What they refuse is among those without a counterpart."""
    fields, out = fields_of(config_class), Translated()
    together(found, fields)
    out.left, out.same = list(found.left), list(found.same)
    names = {name: each.name for each in fields.values() for name in (each.name, *each.aliases)}
    for name, (value, _) in found.values.items():
        if already(name, value) and name not in names:
            out.same.append(name)
            continue
        given = (
            FORMS[name](value)
            if name in FORMS
            else {names[name]: value}
            if name in names
            else renamed(name, value, fields)
        )
        if given is None or not all(target in fields for target in given):
            out.left.append((found.was.get(name, name), value, answer(name, fields) or UNKNOWN))
            continue
        if not given:
            out.same.append(name)
        for target, changed in given.items():
            take(out, fields, found, (name, value), (target, changed))
    defaults = vars_of(config_class, "trl_defaults")
    if found.tool != "TRL":  # it trains with TRL's trainers, and its adapters have defaults of their own
        defaults = {name: said for name, said in defaults.items() if name not in RunConfig.trl_defaults}
    for name, (theirs, why, *needed) in (defaults | found.defaults).items():
        if name not in fields or name in out.taken or not all(out.taken.get(other, (False, ""))[0] for other in needed):
            continue
        ours = fields[name].default
        said = "not set" if ours is None else yaml_text(ours)
        out.defaults[name] = (theirs, f"{found.tool}'s default; here {said}: {why}")
    accepted(out, config_class)
    computed = {
        names.get(name, RENAMED.get(name, (name,))[0]) for name in (said.partition(":")[0] for said in found.computed)
    }
    needed = {each.name: each for each in fields.values() if not {each.name, each.unless} & computed}
    out.missing += missing_required(out.values, needed)
    return out


def accepted(out: Translated, config_class: type[RunConfig]) -> None:
    """Put what the config refuses into `left`, one field after the other, until it refuses nothing more."""
    while True:
        try:
            config_class(**out.values).check()
            return
        except ConfigError as error:
            said = str(error)
        named = [
            name for name in re.findall(r"\w+", said.partition(":")[0]) if name in out.taken or name in out.defaults
        ]
        if not named:
            out.missing.append(said)
            return
        kept = out.taken if named[0] in out.taken else out.defaults
        out.left.append((named[0], kept.pop(named[0])[0], f"refused here: {said}"))


def renamed(name: str, value: Any, fields: Fields) -> Values | None:
    """What a name is here, as far as that can be said without a person."""
    target, note = RENAMED.get(name, (None, ""))
    return {target: value} if target in fields and not note else None


def take(out: Translated, fields: Fields, found: Found, source: tuple[str, Any], given: tuple[str, Any]) -> None:
    """Put one of our fields into `out`, or what was given into `left` where its value doesn't fit."""
    (name, value), (target, changed) = source, given
    try:
        fitted = fit(fields[target], changed)
    except Mismatch as error:
        out.left.append((found.was.get(name, name), value, f"{target}: {error}"))
        return
    comment = (
        ""
        if name == target and fitted == value
        else f"{name}: {yaml_text(value)}"
        if fitted != value
        else f"{name} there"
    )
    comment = found.written.get(name, comment)
    if isinstance(fitted, dict) and target in out.taken:
        before, said = out.taken[target]
        fitted, comment = before | fitted, f"{said}; {comment}"
    elif target in out.taken:
        out.left.append((name, value, f"{target} is given too"))
        return
    out.taken[target] = (fitted, comment)
