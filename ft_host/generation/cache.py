"""Keys and values of rows that come and go while others are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    pass


Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values


@dataclass
class Extent:
    """The part of the buffers in use: the first `rows` rows, the columns from `first` on; `end` is written next."""

    rows: int = 0
    first: int = 0
    end: int = 0


class Columns(CacheLayerMixin):
    """The keys and values of one layer, written in place."""

    def __init__(self, extent: Extent):
        super().__init__()
        self.extent = extent

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError("the buffer is allocated before the model runs")

    def make_room(self, rows: int, columns: int, first: int, like: Pair) -> None:
        """Move the part in use to column `first` of new buffers of this size. The rest is zero: masked values must be
        finite.
        """
        used = self.extent
        new = [old.new_zeros(rows, old.shape[-3], columns, old.shape[-1]) for old in like]
        if self.is_initialized and used.rows:
            for to, of in zip(new, (self.keys, self.values), strict=True):
                to[: used.rows, :, first : first + used.end - used.first] = of[: used.rows, :, used.first : used.end]
        self.keys, self.values = new
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        used = self.extent
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[: used.rows, :, used.end] = states[:, :, 0]
        return tuple(buffer[: used.rows, :, used.first : used.end + 1] for buffer in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.first

    def get_max_length(self) -> int:
        return -1
