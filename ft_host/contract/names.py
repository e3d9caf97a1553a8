"""Names that a hook asks the host for: a wrong one is answered with those that there are."""

from __future__ import annotations

from typing import Any, TypeVar

from ft_host.util.text import nearest

Value = TypeVar("Value")


class UnknownName(KeyError):
    """A name that isn't there. Its text is a sentence, where that of a KeyError is the name."""

    def __str__(self) -> str:
        return str(self.args[0])


class Named(dict[str, Value]):
    """A dict that says what it has: `run.totals` and `run.models`. Raises UnknownName, a KeyError."""

    def __init__(self, name: str, values: dict[str, Value]):
        super().__init__(values)
        self.name = name

    def __missing__(self, key: Any) -> Value:
        known = ", ".join(sorted(self)) or "nothing"
        raise UnknownName(f"{self.name} has no {key!r}{nearest(key, self)}; it has: {known}")
