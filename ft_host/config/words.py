"""Values, types and bounds of fields in words."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ft_host.config.fields import Field


def arms(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def expected(field: Field) -> str:
    """Say in words what a field accepts."""
    words = " or ".join(words_of(arm) for arm in field.arms)
    if field.choices:
        some = ", ".join(str(choice) for choice in field.choices)
        words = f"a list of some of {some}" if field.many else f"one of {some}"
    words += bounds(field)
    return f"{words}, or none" if field.optional else words


def bounds(field: Field) -> str:
    """Return " above 0 and at most 1", or nothing."""
    parts = [
        f"{word} {limit}"
        for word, limit in (("at least", field.ge), ("above", field.gt), ("at most", field.le))
        if limit is not None
    ]
    return " " + " and ".join(parts) if parts else ""


def words_of(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return "a list of " + {str: "texts", int: "whole numbers", float: "numbers", Any: "values"}.get(
            args[0], "mappings"
        )
    if origin is dict:
        item = {str: "text", int: "whole number", float: "number"}.get(args[1], "value")
        return f"a mapping such as {{name: {item}}}"
    return {str: "a text", bool: "true or false", int: "a whole number", float: "a number", Any: "a value"}[hint]


def show(value: Any) -> str:
    """Describe a value in words that name its type where that matters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value!r}" if value else "an empty text"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    kind = {list: "a list", dict: "a mapping"}.get(type(value), f"a {type(value).__name__}")
    text = repr(value)
    return f"{kind}, {text if len(text) <= 60 else text[:57] + '...'}"
