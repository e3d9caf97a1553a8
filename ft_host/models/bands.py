"""Attention of one token a row, some rows at a time, over no more columns than these rows have.

In a batch that is padded on the left each row would cost attention over as many columns as the longest row has. The
rest of a layer costs the same however long a row is, so that all rows go through it together. Within `banded` our
attention function takes a batch of single tokens apart in bands of rows, and hands each to the model's own attention
with the columns that one of its rows sees. The columns that are left out are hidden from all of its rows.

A model whose attention isn't ours (`attention.install`) attends over all columns, with the same results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Band:
    """Neighbouring rows, and the first of the model's columns that one of them sees."""

    rows: slice
    first: int


_bands: ContextVar[list[Band] | None] = ContextVar("ft_host_bands", default=None)


@contextlib.contextmanager
def banded(bands: list[Band]) -> Iterator[None]:
    """Within this block single tokens attend by these bands, which hold all rows of the batch, in order."""
    token = _bands.set(bands if len(bands) > 1 else None)
    try:
        yield
    finally:
        _bands.reset(token)


def bands_for(query: torch.Tensor, key: torch.Tensor, mask: Any, arguments: dict[str, Any]) -> list[Band] | None:
    """Return the bands of a call of attention; None where it takes all rows at once."""
    bands = _bands.get()
    if bands is None or query.shape[2] != 1 or not isinstance(mask, torch.Tensor):
        return None
    fits = mask.shape[0] == query.shape[0] == bands[-1].rows.stop and mask.shape[-1] == key.shape[2]
    return bands if fits and arguments.get("position_bias") is None else None


def by_bands(
    attention: Callable[..., Any],
    bands: list[Band],
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, heads, 1, D)
    key: torch.Tensor,  # (B, kv_heads, C, D)
    value: torch.Tensor,  # (B, kv_heads, C, D')
    mask: torch.Tensor,  # (B, 1, 1, C)
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Return (B, 1, heads, D'), as `attention` would for all rows at once, and no weights."""
    outputs = []
    for band in bands:
        rows, seen = band.rows, slice(band.first, None)
        own = attention(
            module, query[rows], key[rows, :, seen], value[rows, :, seen], mask[rows, ..., seen], **arguments
        )
        outputs.append(own[0])
    return torch.cat(outputs), None
