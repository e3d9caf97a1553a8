"""From a raw row of the data set to a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.types import Drop, Row


@hookspec(firstresult=True)
def ft_prepare(row: Row, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Row | list[Row] | Drop:
    """Turn one raw row, in a format of the field, into token columns.

    Implemented by the method. Runs lazily, when a row's step or window comes up, and for the first rows before a
    model is loaded; possibly in a worker process, possibly again for the same row: it must not keep state. Returns a
    row with `length`, the number of tokens it costs in a batch, and whatever `ft_collate` needs; a list of such rows;
    or `Drop(reason)`, which leaves the row out and counts it under its reason. Raises `RowError`, which ends the run
    with file and line. Since 0.1.
    """


@hookspec(firstresult=True)
def ft_collate(rows: list[Row], tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Batch:
    """Lay the prepared rows of one micro-batch out as segments, with the counts that divide the loss.

    Implemented by the method. Runs once for each micro-batch, before the step's forward passes, on the CPU. Must be
    pure. An empty list is legal (a rank without rows in this step) and must give counts of zero and the same columns.
    Since 0.1.
    """
