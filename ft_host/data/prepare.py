"""Calls a method's `ft_prepare` on raw rows, adds the place to its errors, and counts dropped rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ft_host.contract.rows import prepare
from ft_host.errors import DataError, HookError, RowError
from ft_host.registry import plugins_named
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Prepare = Callable[[Row], "Row | list[Row] | Drop"]

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

    def __call__(self, row: Row) -> Row | list[Row] | Drop:
        method, *diagnostics = self.plugins
        return prepare(plugins_named(method, tuple(diagnostics)), row, self.tokenizer, self.config)


def prepared(prepare: Prepare, where: str, raw: Row) -> list[Row] | Drop:
    """Return the rows that one raw row gives.

    Raises DataError with the place of a row that can't be used, and TypeError where `ft_prepare` returns something
    else.
    """
    try:
        result = prepare(raw)
    except RowError as error:
        raise DataError(f"{where}: {error}") from error
    except HookError as error:
        raise HookError(f"{where}: {error}") from error
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
