"""Nulls that Arrow put into rows: a column of structs has one type, so that each row has the keys of all rows.

The rule, for the columns that become conversations (`FILLED`), at any depth, also in lists of structs: a key without a
value is taken out. A null of the user's own looks the same, and stays only where it can be told: in a column of JSON
text, in values that `datasets` keeps as JSON, and where the column's type says that no row ever has a value for the key
(`"default": null` in a parameter) and it isn't an argument of a call, since functions differ in their arguments.
Other columns are as Arrow gives them.
"""

from __future__ import annotations

from typing import Any

from ft_host.types import Row

FILLED = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools", "chat_template_kwargs")


def cleaned(row: Row, features: Any, renames: dict[str, str]) -> Row:
    """Return a row without the keys that Arrow filled in.

    `features`: the types of the columns; None of a stream whose types aren't known. `renames`: the names that columns
    are given.
    """
    kinds = features or {}
    return {
        name: without_nulls(value, kinds.get(name)) if renames.get(name, name) in FILLED else value
        for name, value in row.items()
    }


def without_nulls(value: Any, kind: Any, arguments: bool = False) -> Any:
    """Return a value of type `kind` (of `datasets`) without the keys that Arrow filled in.

    `arguments`: the value is what a call gives a function, or a part of it.
    """
    import datasets

    if isinstance(value, dict) and (kind is None or isinstance(kind, dict)):
        kinds = kind or {}
        kept = {}
        for name, inner in value.items():
            argument = arguments or name == "arguments"
            if inner is not None or (not argument and kinds.get(name) == datasets.Value("null")):
                kept[name] = without_nulls(inner, kinds.get(name), argument)
        return kept
    if isinstance(value, list) and (kind is None or isinstance(kind, (datasets.List, datasets.LargeList, list))):
        inner = kind if kind is None else kind[0] if isinstance(kind, list) else kind.feature
        return [without_nulls(item, inner, arguments) for item in value]
    return value
