"""Raw rows by epoch and position, for any source; and the pieces of work that preparing them is divided into.

Everything here is a function of (source, layout, start): workers and ranks that read the same source agree without
communication.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.data.omissions import noting
from ft_host.data.order import permutation
from ft_host.data.prepare import Prepare, prepared
from ft_host.data.sources import Source, Stream
from ft_host.errors import DataError
from ft_host.types import Drop, Row
from ft_host.util.seeds import aside, reseed, seed_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.data.mixture import MixedStream, Mixture


PIECE = 128  # raw rows of a window that are prepared together


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How rows become steps, for one rank."""

    rows_per_step: int  # rows of one optimizer step, over all ranks and micro-batches
    rank: int
    world_size: int
    windowed: bool  # every rank prepares whole windows; a slot is then a unit of the window
    window: int
    seed: int
    shuffled: bool
    epochs: float  # infinite where max_steps ends the run

    @classmethod
    def of(cls, config: RunConfig, rank: int, world_size: int) -> StepLayout:
        return cls(
            rows_per_step=config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size,
            rank=rank,
            world_size=world_size,
            windowed=config.packing or config.train_sampling_strategy == "group_by_length",
            window=config.data_window,
            seed=config.seed,
            shuffled=config.train_sampling_strategy != "sequential",
            epochs=math.inf if config.max_steps > 0 else config.num_train_epochs,
        )

    def rows_of(self, epoch: int, num_rows: int) -> int:
        """Return the rows of an epoch: all, except for a last partial epoch.

        It ends with a whole step where steps are known, as in transformers.
        """
        share = round(min(self.epochs - epoch, 1.0), 9)
        if share >= 1:
            return num_rows
        if self.windowed:
            return math.ceil(share * num_rows)
        steps = math.ceil(round(share * math.ceil(num_rows / self.rows_per_step), 6))
        return min(steps * self.rows_per_step, num_rows)


class TableReader:
    """Rows of a source that has a length."""

    def __init__(self, source: Source | Mixture, layout: StepLayout):
        self.source, self.layout = source, layout
        self.epoch = -1

    def has(self, epoch: int, position: int) -> bool:
        return position < self.end(epoch)

    def end(self, epoch: int) -> int:
        return self.layout.rows_of(epoch, self.source.num_rows)

    def get(self, epoch: int, position: int) -> tuple[str, Row] | None:
        """Return (where, row); None past the end."""
        if not self.has(epoch, position):
            return None
        if epoch != self.epoch:
            self.epoch, self.order = epoch, self.source.order(self.layout.seed, epoch, self.layout.shuffled)
        index = self.order(position)
        return self.source.where(index), self.source.read(index)


class StreamReader:
    """Rows of a stream, shuffled within windows. Positions must be read in ascending order.

    `has(epoch, position)` drops everything before that position.
    """

    def __init__(self, source: Stream | MixedStream, layout: StepLayout):
        self.source, self.layout = source, layout
        self.size = layout.window if layout.shuffled else 1
        self.epoch = -1

    def has(self, epoch: int, position: int) -> bool:
        if epoch != self.epoch:
            self.epoch, self.first = epoch, position // self.size * self.size
            self.rows: list[tuple[str, Row]] = []
            self.incoming = self.source.stream(self.first)
            self.ended = False
        self.load(position)
        gone = min(position - self.first, len(self.rows))
        if gone >= self.size:
            gone -= gone % self.size
            del self.rows[:gone]
            self.first += gone
        return position < self.first + len(self.rows)

    def load(self, position: int) -> None:
        while position >= self.first + len(self.rows) and not self.ended:
            begin = self.first + len(self.rows)
            rows = list(itertools.islice(self.incoming, self.size))
            self.ended = len(rows) < self.size
            if self.layout.shuffled and rows:
                order = permutation(len(rows), self.layout.seed, self.epoch, begin)
                rows = [rows[order(index)] for index in range(len(rows))]
            self.rows += rows

    def end(self, epoch: int) -> int:
        """Return the number of rows of the epoch, once all have been read."""
        return self.first + len(self.rows)

    def get(self, epoch: int, position: int) -> tuple[str, Row] | None:
        self.load(position)
        at = position - self.first
        return self.rows[at] if at < len(self.rows) else None


def reader_of(source: Source | Mixture | Stream | MixedStream, layout: StepLayout) -> TableReader | StreamReader:
    return StreamReader(source, layout) if source.num_rows is None else TableReader(source, layout)


# ---------------------------------------------------------------- pieces


@dataclass(kw_only=True)
class Piece:
    """Positions [start, stop) of an epoch, prepared: one step, or a part of a window."""

    epoch: int
    start: int
    stop: int
    ended: bool  # it is the last of the epoch
    rows: list[Row]
    wheres: list[str]  # their places in the data
    seen: int  # raw rows that this rank prepared
    truncated: int
    drops: list[tuple[str, str]]  # (where, reason)
    left_out: dict[str, int]  # rows of which the chat template leaves something out, by what it is


def tasks(
    reader: TableReader | StreamReader, layout: StepLayout, epoch: int, start: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (epoch, start, stop) of each piece from a place on, until the epochs end. `stop` may be past a stream's
    end.
    """
    while epoch < layout.epochs:
        if start == 0 and not reader.has(epoch, 0):
            raise DataError("the training data has no rows")
        while reader.has(epoch, start):
            if layout.windowed:
                stop = min(start + PIECE, (start // layout.window + 1) * layout.window)
            else:
                stop = start + layout.rows_per_step
            yield epoch, start, stop
            start = stop
        epoch, start = epoch + 1, 0


def pieces(
    source: Any, prepare: Prepare, layout: StepLayout, epoch: int, start: int, worker: int, workers: int
) -> Iterator[Piece]:
    """Yield the pieces of one worker: every `workers`-th. Raises DataError for a row that can't be used."""
    reader = reader_of(source, layout)
    for number, task in enumerate(tasks(reader, layout, epoch, start)):
        if number % workers == worker:
            yield piece(reader, prepare, layout, *task)


def piece(
    reader: TableReader | StreamReader, prepare: Prepare, layout: StepLayout, epoch: int, start: int, stop: int
) -> Piece:
    with aside():
        return _piece(reader, prepare, layout, epoch, start, stop)


def _piece(
    reader: TableReader | StreamReader, prepare: Prepare, layout: StepLayout, epoch: int, start: int, stop: int
) -> Piece:
    mine = range(start, stop) if layout.windowed else range(start + layout.rank, stop, layout.world_size)
    rows: list[Row] = []
    wheres: list[str] = []
    drops: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    seen = 0
    for position in mine:
        item = reader.get(epoch, position)
        if item is None:
            break
        seen += 1
        where, raw = item
        reseed(seed_of(layout.seed, "row", epoch, position))  # whichever worker or rank it is, also after a restart
        with noting() as kinds:
            result = prepared(prepare, where, raw)
        left_out.update(kinds)
        if isinstance(result, Drop):
            drops.append((where, str(result)))
        else:
            rows += result
            wheres += [where] * len(result)
    ended = not reader.has(epoch, stop)
    return Piece(
        epoch=epoch,
        start=start,
        stop=min(stop, reader.end(epoch)) if ended else stop,
        ended=ended,
        rows=rows,
        wheres=wheres,
        seen=seen,
        truncated=sum(row.get("truncated") is True for row in rows),
        drops=drops,
        left_out=dict(left_out),
    )
