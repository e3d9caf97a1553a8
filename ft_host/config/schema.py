"""`ft-host schema METHOD`: a JSON Schema of the config file, for completion and checks in editors."""

from __future__ import annotations

import typing
from typing import Any

from ft_host.config.fields import GROUPS, UNSET, Field, fields_of
from ft_host.config.paths import MIXTURE

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(method: str, config_class: type) -> dict[str, Any]:
    """Return a schema of draft 2020-12. No field is required: a flag may set what the file leaves out."""
    properties: dict[str, Any] = {
        "$schema": {"type": "string", "description": "This schema, for editors; read by nothing else."},
        "method": {"const": method, "description": "The method to train with, where the command line names none."},
    }
    for field in fields_of(config_class).values():
        properties[field.name] = property_of(field)
        for alias in field.aliases:
            properties[alias] = property_of(field) | {
                "description": f"Another name of {field.name}.",
                "deprecated": True,
            }
        for old in field.was:
            properties[old] = property_of(field) | {"description": f"Called {field.name} now.", "deprecated": True}
    return {
        "$schema": DIALECT,
        "title": f"ft-host {method}",
        "description": " ".join((config_class.__doc__ or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def property_of(field: Field) -> dict[str, Any]:
    """Return one field as a property. The text `none` unsets an optional field, since TOML has no null."""
    shapes = [shape_of(arm, field) for arm in field.arms]
    if field.optional and str not in field.arms:
        shapes.append({"enum": [None, *UNSET]})
    elif field.optional:
        shapes.append({"type": "null"})
    if field.arms == (list[str],):  # one text is a list of it
        shapes += [shape_of(str, field), {"enum": [*UNSET]}]
    if field.default in ([], {}) and not field.optional:
        shapes.append({"type": "null"})
    if field.also:
        shapes.append({"enum": [*field.also]})
    shape = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    annotations = {"description": f"[{GROUPS[field.group]}] {field.help}", "default": field.default}
    if field.example:
        annotations["examples"] = [field.example]
    if any(each.new is None for each in field.deprecated):
        annotations["deprecated"] = True
    return shape | annotations


def shape_of(hint: Any, field: Field) -> dict[str, Any]:
    """Return a type with the field's choices and bounds, which apply to each item of a list."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        if field.name == "dataset":
            return {"type": "array", "items": mixture_shape()}
        return {"type": "array", "items": shape_of(args[0], field)}
    if origin is dict:
        item = {} if args[1] is Any else shape_of(args[1], field)
        return {"type": "object", "additionalProperties": item or True}
    if hint is Any:
        return {}
    shape: dict[str, Any] = {"type": {str: "string", bool: "boolean", int: "integer", float: "number"}[hint]}
    if field.choices:
        shape["enum"] = list(field.choices)
    limits = {"minimum": field.ge, "exclusiveMinimum": field.gt, "maximum": field.le}
    if hint in (int, float):
        shape |= {name: limit for name, limit in limits.items() if limit is not None}
    if field.required and hint is str:
        shape["minLength"] = 1
    return shape


def mixture_shape() -> dict[str, Any]:
    """Return the shape of one of several data sets to mix."""
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    properties: dict[str, Any] = {}
    for key, kinds in MIXTURE.items():
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        properties[key] = {"type": [*(names[kind] for kind in kinds), "null"]}
    properties["path"] = {"type": "string", "minLength": 1}
    properties["weight"] = {"type": ["number", "null"], "exclusiveMinimum": 0}
    return {"type": "object", "properties": properties, "required": ["path"], "additionalProperties": False}
