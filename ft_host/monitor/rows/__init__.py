"""Rows as a person sees them who scrolls through the data: facts about a sample of raw rows, as texts.

`ft_host.monitor.data_stats` measures the tokens that rows become; this is about what they say. The cost is that of a
number of rows and characters, whatever the machine does beside.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.monitor.end_marks import ENDS
from ft_host.monitor.rows.across import across_facts
from ft_host.monitor.rows.columns import column_facts, left_overs
from ft_host.monitor.rows.exchanges import exchange_facts
from ft_host.monitor.rows.read import ANSWERS, WHOLE, Seen, read
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

__all__ = ["exchanged_too", "row_facts"]

Placed = Iterable[tuple[str, Row]]


def row_facts(
    rows: Placed, tokenizer: PreTrainedTokenizerBase, config: RunConfig, columns: Iterable[str] = ()
) -> dict[str, Any]:
    """Facts by name. `rows`: each with its place, in the order of the data. `columns`: names of further ones that the
    loss or a reward reads."""
    seen = seen_rows(rows, tokenizer, config, columns)
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
    marks = [*ENDS, *tokenizer.all_special_tokens]
    return (
        column_facts(seen, marks, learnt=not isinstance(config, RolloutConfig))
        | across_facts(seen)
        | exchange_facts(seen, config.dataset_columns)
        | left_overs(seen, lambda mark: mark in vocabulary or mark in template)
    )


def seen_rows(
    rows: Placed, tokenizer: PreTrainedTokenizerBase, config: RunConfig, columns: Iterable[str] = ()
) -> list[Seen]:
    by_rollout = isinstance(config, RolloutConfig)
    kept = {*columns, *ANSWERS, *(WHOLE if by_rollout else ())}
    found = (read(row, where, tokenizer, kept, by_rollout) for where, row in rows)
    return [row for row in found if row is not None]


def exchanged_too(facts: dict[str, Any], rows: Placed, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> bool:
    """Whether what `facts` say is exchanged in the training data is so in `rows`, which are held out."""
    found = exchange_facts(seen_rows(rows, tokenizer, config), config.dataset_columns)
    return all((name in found) == (name in facts) for name in ("data/exchanged", "data/contradicted/rejected"))
