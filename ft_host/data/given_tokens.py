"""Rows that are tokens already: their ids and labels, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.data.messages import kind_of
from ft_host.errors import RowError
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def given_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, completion_only: bool | None
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a row that has them. Masks apply where there are no labels."""
    size = len(tokenizer)
    ids = checked_ids(row["input_ids"], "input_ids", size)
    columns = {name: list(row[name]) for name in ("labels", "completion_mask", "assistant_masks") if name in row}
    for name, values in columns.items():
        if len(values) != len(ids):
            raise RowError(f"column {name}: {len(values)} values for {len(ids)} input_ids", name)
    labels = columns.get("labels")
    if labels is None:
        masks = [columns["assistant_masks"]] if "assistant_masks" in columns else []
        if completion_only is not False and "completion_mask" in columns:
            masks.append(columns["completion_mask"])
        labels = [token if all(mask[index] for mask in masks) else IGNORE for index, token in enumerate(ids)]
    wrong = [index for index, label in enumerate(labels) if label != IGNORE and label != ids[index]]
    for index in wrong:
        if not isinstance(labels[index], int) or not 0 <= labels[index] < size:
            raise RowError(f"labels[{index}]: found {labels[index]!r}, expected a token id or -100", "labels")
    if len(wrong) > 1 and all(labels[index] == ids[index + 1] for index in wrong if index + 1 < len(ids)):
        raise RowError(
            "column labels: found labels shifted by one token; expected labels aligned with input_ids, "
            "-100 where a token isn't supervised",
            "labels",
        )
    return ids, labels


def checked_ids(values: Any, column: str, size: int) -> list[int]:
    """Return a column of token ids, each below `size`. Raises RowError that names the position of an invalid one."""
    if not isinstance(values, list):
        raise RowError(f"column {column}: found {kind_of(values)}, expected a list of token ids", column)
    for index, token in enumerate(values):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            raise RowError(f"{column}[{index}]: found {token!r}, expected a token id from 0 to {size - 1}", column)
    return list(values)
