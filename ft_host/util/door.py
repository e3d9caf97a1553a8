"""Modules that offer names of others, each fetched when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def open_door(module: str, homes: dict[str, str], into: dict[str, Any]) -> tuple[list[str], Callable[[str], Any]]:
    """The `__all__` and the `__getattr__` of a module that offers `homes`: {module: its names, with spaces between}.

    `into` are the module's globals, where a name that was fetched is kept. The `__getattr__` raises AttributeError for
    other names.
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = into[name] = getattr(importlib.import_module(home_of[name]), name)
        return value

    return sorted(home_of), get
