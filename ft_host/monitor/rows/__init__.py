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
from ft_host.monitor.rows.columns import LEAST, column_facts, left_overs, texts_by_column
from ft_host.monitor.rows.exchanges import exchange_facts
from ft_host.monitor.rows.held_out import beside_held_out
from ft_host.monitor.rows.read import ANSWERS, WHOLE, Seen, read
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

__all__ = ["row_facts"]

Placed = Iterable[tuple[str, Row]]


def room_facts(rows: list[Seen], tokenizer: PreTrainedTokenizerBase, room: int) -> dict[str, Any]:
    """Whole completions and answers of the data that a sampled completion would have no room for."""
    facts: dict[str, Any] = {}
    for column, texts in texts_by_column(rows).items():
        if column not in (*WHOLE, *ANSWERS) or len(texts) < LEAST:
            continue
        sizes = sorted(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text, _ in texts)
        longer = sum(size > room for size in sizes)
        if longer:
            facts[f"data/longer_than_room/{column}"] = longer / len(sizes)
            facts[f"data/room_for/{column}"] = sizes[min(len(sizes) - 1, int(0.95 * len(sizes)))]
    return facts


def row_facts(
    rows: Placed,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    columns: Iterable[str] = (),
    held_out: Placed | None = None,
) -> dict[str, Any]:
    """Facts by name. `rows`: each with its place, in the order of the data. `columns`: names of further ones that the
    loss or a reward reads. `held_out`: rows to compare with, where there are any."""
    by_rollout = isinstance(config, RolloutConfig)
    names = {*columns, *ANSWERS, *(WHOLE if by_rollout else ())}

    def seen(given: Placed) -> list[Seen]:
        found = (read(row, where, tokenizer, names, by_rollout) for where, row in given)
        return [row for row in found if row is not None]

    here, apart = seen(rows), None if held_out is None else seen(held_out)
    vocabulary, template = tokenizer.get_vocab(), str(tokenizer.chat_template or "")
    marks = [*ENDS, *tokenizer.all_special_tokens]
    facts = column_facts(here, marks, learnt=not by_rollout)
    facts |= across_facts(here)
    facts |= left_overs(here, lambda mark: mark in vocabulary or mark in template)
    facts |= room_facts(here, tokenizer, config.max_completion_length) if isinstance(config, RolloutConfig) else {}
    facts |= beside_held_out(here, apart, by_rollout) if apart else {}
    facts |= exchange_facts(here, config.dataset_columns)
    turned = ("data/exchanged", "data/contradicted/rejected")
    if any(name in facts for name in turned):
        there = facts if apart is None else exchange_facts(apart, config.dataset_columns)
        facts["data/exchanged_columns"] = all((name in there) == (name in facts) for name in turned)
    return facts
