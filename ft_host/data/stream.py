"""The rows of optimizer steps, prepared when needed, in an order that any restart reproduces.

Without packing and length grouping a step is its number of raw rows: rank r prepares slots r, r + world_size, ... of
it, and a dropped row leaves its slot empty. With them, every rank prepares whole windows and makes units of them
(blocks, or rows by length), and a step takes its number of units. Steps never cross epochs, so the last step of an
epoch may be short.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ft_host.data.order import permutation
from ft_host.data.packing import pack
from ft_host.data.prepare import Prepare, Tally, prepared
from ft_host.data.reader import Piece, StepLayout, pieces, reader_of
from ft_host.errors import DataError
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.data.mixture import MixedStream, Mixture
    from ft_host.data.sources import Source, Stream


CHECKED = 64  # rows prepared before a model is loaded


@dataclass(kw_only=True)
class StepRows:
    """This rank's rows of one optimizer step, and the position in the data after it."""

    units: list[list[Row]]  # a unit is one row, or one packed block of rows
    rows_consumed: int  # raw rows so far, over all ranks and epochs; within a window, in proportion
    epoch: float
    position: dict[str, Any]  # JSON-able: a stream made with it continues after this step
    dropped: dict[str, int]  # by reason, so far; of this rank, where each rank prepares its own rows
    truncated: int  # rows cut at max_length so far, counted likewise
    last: bool  # whether it is known to be the last step
    wheres: list[str] = field(default_factory=list)  # the place of each row in the data; none of windows
    whole_units: bool = False  # rows of a unit share a micro-batch, whose size is counted in rows
    metrics: dict[str, float] = field(default_factory=dict)  # of making the rows, logged with this step


@dataclass(kw_only=True)
class Window:
    """Positions [start, stop) of an epoch, made into units."""

    epoch: int
    start: int
    stop: int
    ended: bool
    units: list[list[Row]]


class TrainStream:
    """Iterate over it once: yields `StepRows` until the epochs end, or forever where `max_steps` ends the run.

    `prepare` maps a raw row to a row, rows or a Drop; it must be picklable with worker processes. Raises DataError at a
    row that can't be used, and when too many rows are dropped.
    """

    def __init__(
        self,
        source: Source | Mixture | Stream | MixedStream,
        prepare: Prepare,
        config: RunConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        position: dict[str, Any] | None = None,
    ):
        self.source, self.config = source, config
        self.layout = StepLayout.of(config, rank, world_size)
        at = position or {}
        self.epoch, self.row, self.unit = at.get("epoch", 0), at.get("row", 0), at.get("unit", 0)
        self.consumed = at.get("consumed", 0)  # rows of all finished pieces or windows
        self.density: float | None = at.get("density")  # units per raw row, from the first window
        self.tally = Tally(
            seen=at.get("seen", 0),
            truncated=at.get("truncated", 0),
            dropped=dict(at.get("dropped", {})),
            left_out=dict(at.get("left_out", {})),
        )
        self.counted = self.unit > 0  # the window that it begins in is already counted
        make = partial(pieces, source, prepare, self.layout, self.epoch, self.row)
        workers = config.dataloader_num_workers
        # No reference cycles: deleting the stream ends the workers at once.
        self._pieces = from_workers(make, workers) if workers else make(0, 1)
        self._peeked: Window | None = None
        self._window: Window | None = None
        self._waiting: deque[list[Row]] = deque()
        self._empty_since: int | None = None if self.row or self.unit else self.epoch  # its windows have given no unit

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        step = self._from_windows() if self.layout.windowed else self._from_piece()
        if step is None:
            raise StopIteration
        return step

    def close(self) -> None:
        """End the worker processes. Also happens when the stream is deleted."""
        self._pieces.close()

    def planned_steps(self) -> int | None:
        """Return optimizer steps of all epochs: exact, or estimated from the first window where windows are made into
        units.

        None for a stream, whose length isn't known. Prepares the first window in that case, which is kept.
        """
        rows, layout = self.source.num_rows, self.layout
        if rows is None or math.isinf(layout.epochs):
            return None
        if layout.windowed and self.density is None:
            self._peeked = self._load()
        total = 0
        for epoch in range(math.ceil(layout.epochs)):
            units = layout.rows_of(epoch, rows) * (self.density if layout.windowed else 1)
            total += math.ceil(round(units, 6) / layout.rows_per_step)
        return total

    # -- steps

    def _from_piece(self) -> StepRows | None:
        piece = next(self._pieces, None)
        if piece is None:
            return None
        self._count(piece)
        self.consumed += piece.stop - piece.start
        place = (piece.epoch + 1, 0, 0) if piece.ended else (piece.epoch, piece.stop, 0)
        units, last = [[row] for row in piece.rows], self._is_final(piece.epoch, piece.ended)
        return replace(self._step(units, place, self.consumed, self.consumed, last), wheres=piece.wheres)

    def _from_windows(self) -> StepRows | None:
        waiting, rows_per_step = self._waiting, self.layout.rows_per_step
        while len(waiting) < rows_per_step and not (waiting and self._window.ended):
            if self._window is not None:
                self.consumed += self._window.stop - self._window.start
            self._window = self._peeked or self._load()
            self._peeked = None
            if self._window is None:
                return None
            self._check_rows_left(self._window)
            waiting.extend(self._window.units[self.unit :])
            self.unit = 0
        window = self._window
        units = [waiting.popleft() for _ in range(min(rows_per_step, len(waiting)))]
        # All waiting units are of this window: what came before it was less than a step.
        size, used = window.stop - window.start, len(window.units) - len(waiting)
        if waiting:
            place = (window.epoch, window.start, used)
            base, consumed = self.consumed, self.consumed + size * used // len(window.units)
        else:
            place = (window.epoch + 1, 0, 0) if window.ended else (window.epoch, window.stop, 0)
            base = consumed = self.consumed + size
        last = not waiting and self._is_final(window.epoch, window.ended)
        return self._step(units[self.layout.rank :: self.layout.world_size], place, base, consumed, last)

    def _is_final(self, epoch: int, ended: bool) -> bool:
        return ended and epoch + 1 >= self.layout.epochs

    def _step(
        self, units: list[list[Row]], place: tuple[int, int, int], base: int, consumed: int, last: bool
    ) -> StepRows:
        """`place`: epoch, row and unit to continue with. `base`: rows consumed before its window."""
        rows = self.source.num_rows
        epoch, row, unit = place
        position = {
            "epoch": epoch,
            "row": row,
            "unit": unit,
            "consumed": base,
            "density": self.density,
            "seen": self.tally.seen,
            "truncated": self.tally.truncated,
            "dropped": dict(self.tally.dropped),
            "left_out": dict(self.tally.left_out),
        }
        return StepRows(
            units=units,
            rows_consumed=consumed,
            epoch=consumed / rows if rows else float(epoch),
            position=position,
            dropped=dict(self.tally.dropped),
            truncated=self.tally.truncated,
            last=last,
        )

    # -- windows

    def _load(self) -> Window | None:
        """Return the next window; None after the last."""
        rows: list[Row] = []
        start = None
        for piece in self._pieces:
            if not self.counted:
                self._count(piece)
            start = piece.start if start is None else start
            rows += piece.rows
            if piece.ended or piece.stop % self.layout.window == 0:
                self.counted = False
                units = self._units(rows, piece.epoch, start)
                if self.density is None:
                    self.density = len(units) / (piece.stop - start)
                return Window(epoch=piece.epoch, start=start, stop=piece.stop, ended=piece.ended, units=units)
        return None

    def _check_rows_left(self, window: Window) -> None:
        """Raise DataError where a whole epoch of windows has given no unit: epochs that go on would give none for
        ever."""
        if window.units:
            self._empty_since = None
        elif window.ended and self._empty_since == window.epoch:
            raise DataError(f"no row is left to train on: an epoch has given none{self.tally.said()}")
        if window.ended:
            self._empty_since = window.epoch + 1

    def _units(self, rows: list[Row], epoch: int, start: int) -> list[list[Row]]:
        """Return the rows of a window as packed blocks, or by length.

        Shuffled, so that a window doesn't begin with its longest rows: packed blocks one by one, rows by length in
        chunks of a step.
        """
        config, rows_per_step = self.config, self.layout.rows_per_step
        if config.packing:
            units = pack(rows, config.max_length, config.packing_strategy)
            chunks = [[unit] for unit in units]
        else:
            units = [[row] for row in sorted(rows, key=lambda row: -row["length"])]
            chunks = [units[at : at + rows_per_step] for at in range(0, len(units), rows_per_step)]
        if not self.layout.shuffled or not chunks:
            return units
        whole = len(chunks) if config.packing else len(units) // rows_per_step  # a short chunk stays at the end
        order = permutation(whole, self.layout.seed, epoch, start, "units")
        return [unit for at in range(len(chunks)) for unit in chunks[order(at) if at < whole else at]]

    # -- pieces

    def _count(self, piece: Piece) -> None:
        self.tally.add(piece.seen, piece.truncated, piece.drops, piece.left_out)
        layout = self.layout
        if piece.ended or self.tally.seen * (1 if layout.windowed else layout.world_size) >= layout.window:
            self.tally.check_dropped(self.config)


def from_workers(make: Callable[[int, int], Iterator[Piece]], workers: int) -> Iterator[Piece]:
    from ft_host.data.workers import ahead

    yield from ahead(make, workers)


# ---------------------------------------------------------------- before and beside training


def check_first_rows(source: Source | Mixture | Stream | MixedStream, prepare: Prepare, config: RunConfig) -> None:
    """Prepare the first rows of training, so that wrong data is refused before a model is loaded.

    Raises DataError for a row that can't be used, and when too many rows are dropped.
    """
    reader = reader_of(source, StepLayout.of(config, 0, 1))
    tally = Tally()
    for position in range(min(CHECKED, config.data_window)):
        item = reader.get(0, position) if reader.has(0, position) else None
        if item is None:
            break
        result = prepared(prepare, *item)
        tally.add(1, 0, [(item[0], str(result))] if isinstance(result, Drop) else [])
    if not tally.seen:
        raise DataError("the training data has no rows")
    tally.check_dropped(config)


def eval_rows(source: Source | Mixture, prepare: Prepare, config: RunConfig) -> tuple[list[Row], list[Row]]:
    """Return all evaluation rows, or the first `eval_max_rows`: prepared (without dropped rows), and raw (all).

    Raises DataError for a row that can't be used, and when too many rows are dropped.
    """
    size = source.num_rows if config.eval_max_rows is None else min(config.eval_max_rows, source.num_rows)
    tally, rows, raws = Tally(), [], []
    order = source.order(0, 0, False)
    for position in range(size):
        index = order(position)
        raw = source.read(index)
        raws.append(raw)
        result = prepared(prepare, source.where(index), raw)
        if isinstance(result, Drop):
            tally.add(1, 0, [(source.where(index), str(result))])
        else:
            tally.add(1, 0, [])
            rows += result
    tally.check_dropped(config)
    return rows, raws
