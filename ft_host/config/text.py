"""Values and fields as text: in YAML, in TOML, and in the words of the help."""

from __future__ import annotations

import json
import re
import typing
from typing import Any

from ft_host.config.fields import Field

PLAIN = re.compile(r"[A-Za-z/.][\w./@+-]*")
WORDS = (
    "true",
    "false",
    "null",
    "none",
    "yes",
    "no",
    "on",
    "off",
    "y",
    "n",
)  # some YAML readers don't read these as text


def yaml_text(value: Any) -> str:
    """Return a value on one line of YAML that all YAML readers read alike."""
    if value is None:
        return "null"
    if isinstance(value, str):
        if PLAIN.fullmatch(value) and value.lower() not in WORDS and not value.startswith("..."):
            return value
        return json_text(value)
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))  # YAML 1.1 reads 1e-05 as text
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return f"[{', '.join(yaml_text(item) for item in value)}]"
    return json_text(value)


def json_text(value: Any) -> str:
    """Return a value as JSON that YAML and TOML read alike: some characters end a line in YAML, or are forbidden in
    TOML.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def toml_text(value: Any) -> str:
    """Return a value on one line of TOML. TOML has no null: the text "none" stands for it."""
    if value is None:
        return '"none"'
    if isinstance(value, list):
        return f"[{', '.join(toml_text(item) for item in value)}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{json_text(key)} = {toml_text(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json_text(value)


def default_text(field: Field) -> str:
    """Return the default in words."""
    if field.required:
        return "required"
    if field.default in (None, ""):
        return "default: not set"
    number = isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
    return f"default: {field.default:g}" if number else f"default: {yaml_text(field.default)}"


def type_text(field: Field) -> str:
    """Return what follows the flag, in capitals: TEXT, INT, NUMBER, "nll|dft", "TEXT ..."."""
    if field.choices:
        some = "|".join(str(choice) for choice in field.choices)
        return f"{some} ..." if field.many else some
    return "|".join(_arm_text(arm) for arm in field.arms)


def _arm_text(arm: Any) -> str:
    origin, args = typing.get_origin(arm), typing.get_args(arm)
    if origin is list:
        return f"{_arm_text(args[0])} ..." if args[0] in (str, int, float) else "[...]"
    if origin is dict:
        return "{...}"
    return {str: "TEXT", bool: "true|false", int: "INT", float: "NUMBER", Any: "VALUE"}[arm]
