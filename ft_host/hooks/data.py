"""From a raw row of the data set to a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.hooks import hookspec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.batch import Batch
    from ft_host.config import RunConfig
    from ft_host.types import Drop

Row = dict[str, Any]


@hookspec(firstresult=True)
def ft_prepare(row: Row, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Row | list[Row] | Drop:
    """Turn one raw row, in a format of the field, into token columns.

    Implemented by the method. Runs lazily, when a row's step or window comes up, and for the first rows before a
    model is loaded; possibly in a worker process, possibly again for the same row: it must not keep state. A returned
    row holds `length`, the number of tokens it costs in a batch, beside whatever `ft_collate` needs. `Drop(reason)`
    leaves the row out and counts it under its reason; `RowError` ends the run, naming file and line. Since 0.1.
    """


@hookspec(firstresult=True)
def ft_collate(rows: list[Row], tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Batch:
    """Lay the prepared rows of one micro-batch out as a forest of segments, with the counts that the loss divides by.

    Implemented by the method. Runs once per micro-batch, before the step's forward passes. Pure. An empty list is
    legal (a rank without rows in this step) and gives counts of zero. Since 0.1.
    """
