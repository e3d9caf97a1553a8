"""Calls a method's `ft_prepare` on raw rows, adds the place to its errors, and counts dropped rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.contract.rows import prepare
from ft_host.data.long_texts import name_long
from ft_host.errors import DataError, HookError, RowError
from ft_host.registry import plugins_named
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Prepare = Callable[[Row], "Row | list[Row] | Drop"]

HALF = re.compile("[\ud800-\udfff]")
DEEPEST = 200  # levels of a row; Python's limit of calls within calls is a thousand
SHOWN = 3  # rows that an error names for each reason


@dataclass(frozen=True)
class PrepareRow:
    """`ft_prepare` of a run's method, with what the run's diagnostics wrap around it, in whatever process this is.

    A plugin manager can't be sent to a worker process. Names can: `plugins` are those of the method and then of its
    diagnostics, as `registry.reference` gives them. Raises what `ft_prepare` raises, and HookError.
    """

    plugins: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    embeddings: int | None = None  # of the model, where its tokenizer has more tokens

    def __call__(self, row: Row) -> Row | list[Row] | Drop:
        method, *diagnostics = self.plugins
        result = prepare(plugins_named(method, tuple(diagnostics)), row, self.tokenizer, self.config)
        if self.embeddings is not None and not isinstance(result, Drop):
            self.check_tokens(result if isinstance(result, list) else [result], self.embeddings)
        return result

    def check_tokens(self, rows: list[Row], embeddings: int) -> None:
        """Refuse rows with a token that the model has no embedding for. Raises RowError."""
        for row in rows:
            for name, ids in row.items():
                if name.endswith("ids") and isinstance(ids, list) and any(id >= embeddings for id in ids):
                    id = next(id for id in ids if id >= embeddings)
                    raise RowError(
                        f"holds the token {self.tokenizer.convert_ids_to_tokens(id)!r} ({id}), and {self.config.model} "
                        f"has embeddings for {embeddings} tokens; resize_token_embeddings adds one"
                    )


def prepared(prepare: Prepare, where: str, raw: Row) -> list[Row] | Drop:
    """Return the rows that one raw row gives.

    Raises DataError with the place of a row that can't be used, HookError with the place for any other error, and
    TypeError where `ft_prepare` returns something else.
    """
    name_long(where, raw)
    try:
        result = prepare(raw)
    except RowError as error:
        raise DataError(f"{where}: {error}", facts={"watch/failed_place": where}) from error
    except HookError as error:
        if (odd := odd_value(raw)) is not None:
            raise DataError(f"{where}: {odd}", facts={"watch/failed_place": where}) from error
        raise HookError(f"{where}: {error}", facts=error.facts | {"watch/failed_place": where}) from error
    except Exception as error:
        error.add_note(f"while preparing {where}")
        raise
    if isinstance(result, Drop):
        return result
    rows = result if isinstance(result, list) else [result]
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("length"), int):
            raise TypeError(
                f"ft_prepare gave {type(row).__name__} {str(row)[:80]} for {where}; expected rows that hold `length`, "
                "or Drop(reason)"
            )
    return rows or Drop("ft_prepare gave no rows")


def odd_value(row: Row) -> str | None:
    """Look in a row that could not be prepared for what no tokenizer takes, at any depth; None where there is none."""
    waiting: list[tuple[str, Any, int]] = [(f"column {name!r}", value, 1) for name, value in row.items()]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > DEEPEST:
            return f"{place[:40]}… holds lists within lists, {DEEPEST} deep and more"
        if isinstance(value, str) and (half := HALF.search(value)) is not None:
            return (
                f"{place} holds half a character at position {half.start() + 1}: \\u{ord(half[0]):04x} is one of a pair"
                " of surrogates, of which the other is missing (an emoji that was cut in two, for instance); mend or"
                " remove it"
            )
        if isinstance(value, dict):
            waiting += [(f"{place}[{key!r}]", each, depth + 1) for key, each in value.items()]
            waiting += [(f"a name in {place}", key, depth + 1) for key in value]
        elif isinstance(value, list | tuple):
            waiting += [(f"{place}[{index}]", each, depth + 1) for index, each in enumerate(value)]
    return None


@dataclass
class Tally:
    """Counts raw rows and dropped rows, by reason, with the first places."""

    seen: int = 0
    truncated: int = 0  # prepared rows that were truncated
    dropped: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)  # by what the chat template leaves out

    def add(
        self, seen: int, truncated: int, drops: list[tuple[str, str]], left_out: dict[str, int] | None = None
    ) -> None:
        for kind, count in (left_out or {}).items():
            self.left_out[kind] = self.left_out.get(kind, 0) + count
        self.seen += seen
        self.truncated += truncated
        for where, reason in drops:
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
            named = self.places.setdefault(reason, [])
            if len(named) < SHOWN:
                named.append(where)

    def said(self) -> str:
        """Say why rows were dropped, most of them first; "" if none were."""
        reasons = sorted(self.dropped.items(), key=lambda item: -item[1])
        return "".join(f"; {count} rows were dropped: {reason}" for reason, count in reasons)

    def check_dropped(self, config: RunConfig) -> None:
        """Raise DataError where more rows were dropped than `max_dropped_share` allows."""
        total = sum(self.dropped.values())
        if total <= config.max_dropped_share * self.seen:
            return
        lines = [
            f"{total} of the first {self.seen} rows were dropped ({total / self.seen:.0%}); max_dropped_share is "
            f"{config.max_dropped_share:g}"
        ]
        for reason, count in sorted(self.dropped.items(), key=lambda item: -item[1]):
            places = ", ".join(self.places.get(reason, []))
            lines.append(f"  {count} × {reason}" + (f" (first: {places})" if places else ""))
        if any("max_length" in reason for reason in self.dropped):
            lines.append(
                f"  max_length is {config.max_length} and cuts rows ({config.truncation_mode}): raise it, or keep the "
                f"{'end' if config.truncation_mode == 'keep_start' else 'start'} of rows with truncation_mode"
            )
        raise DataError("\n".join(lines))
