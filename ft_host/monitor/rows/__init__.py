"""Rows as a person sees them who scrolls through the data: facts about a sample of raw rows, as texts.

`ft_host.monitor.data_stats` measures the tokens that rows become; this is about what they say. The cost is that of a
number of rows and characters, whatever the machine does beside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ft_host.monitor.rows.across import across_facts
from ft_host.monitor.rows.columns import column_facts, left_overs
from ft_host.monitor.rows.exchanges import exchange_facts
from ft_host.monitor.rows.read import ANSWERS, WHOLE, read
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["row_facts"]


def row_facts(
    rows: Iterable[tuple[str, Row]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    marks: Iterable[str],
    columns: Iterable[str],
    renames: dict[str, str],
    by_rollout: bool,
) -> dict[str, Any]:
    """Facts by name. `rows`: each with its place, in the order of the data. `marks`: tokens that say nothing.
    `columns`: names of further ones that the loss or a reward reads. `renames`: dataset_columns."""
    kept = {*columns, *ANSWERS, *(WHOLE if by_rollout else ())}
    found = [read(row, where, tokenizer, kept, by_rollout) for where, row in rows]
    seen = [row for row in found if row is not None]
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
    return (
        column_facts(seen, marks, learnt=not by_rollout)
        | across_facts(seen)
        | exchange_facts(seen, renames)
        | left_overs(seen, lambda mark: mark in vocabulary or mark in template)
    )
