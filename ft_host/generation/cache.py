"""Keys and values of rows that come and go while others are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values
Part = tuple[slice, int]  # neighbouring rows, and the first column that one of them has


@dataclass
class Extent:
    """The part of the buffers in use: the first `rows` rows, the columns from `first` on; `end` is written next.

    Within a `Frame`'s step the model sees the frame, and the column that is written is a number on the device.
    """

    rows: int = 0
    first: int = 0
    end: int = 0
    frame: Frame | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """The first `rows` rows and `columns` columns; `at`: (1,) the column that is written."""

    rows: int
    columns: int
    at: torch.Tensor


def held_type(states: torch.Tensor) -> torch.dtype:
    """Return the type in which keys or values are held: autocast's, in which attention reads them whatever they are."""
    kind = states.device.type
    cast = states.dtype == torch.float32 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if cast else states.dtype


class Columns(CacheLayerMixin):
    """The keys and values of one layer, written in place."""

    def __init__(self, extent: Extent):
        super().__init__()
        self.extent = extent

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the buffers."""
        return (self.keys.shape[0], self.keys.shape[2]) if self.is_initialized else (0, 0)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError("the buffer is allocated before the model runs")

    def make_room(self, rows: int, columns: int, shift: int, like: Pair, parts: list[Part]) -> None:
        """Move what is in use, these `parts`, by `shift` columns: within the buffers where they are of this size, or
        into new ones. The rest is zero, or what was there: masked values must be finite."""
        end, fits = self.extent.end, self.shape == (rows, columns)
        if fits:
            new = [self.keys, self.values]
        else:
            new = [old.new_zeros(rows, old.shape[-3], columns, old.shape[-1], dtype=held_type(old)) for old in like]
        if self.is_initialized:
            for to, of in zip(new, (self.keys, self.values), strict=True):
                for own, first in parts:
                    moved = of[own, :, first:end]
                    # Where old and new columns overlap, a copy in between
                    overlap = fits and abs(shift) < end - first
                    to[own, :, first + shift : end + shift] = moved.clone() if overlap else moved
        self.keys, self.values = new
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        used, frame = self.extent, self.extent.frame
        if frame is not None:
            buffers = tuple(buffer[: frame.rows, :, : frame.columns] for buffer in (self.keys, self.values))
            for buffer, states in zip(buffers, (key_states, value_states), strict=True):
                buffer.index_copy_(2, frame.at, states.to(buffer.dtype))
            return buffers
        for buffer, states in ((self.keys, key_states), (self.values, value_states)):
            buffer[: used.rows, :, used.end] = states[:, :, 0]
        return tuple(buffer[: used.rows, :, used.first : used.end + 1] for buffer in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.extent.frame is not None:
            return self.extent.frame.columns, 0
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.first

    def get_max_length(self) -> int:
        return -1
