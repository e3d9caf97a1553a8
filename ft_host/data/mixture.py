"""Mixes several sources in proportion to their weights.

For sources with a length, an epoch is the longest proportional mix without repeated rows: it ends when the first source
is used up. The next epoch continues in each source where the last one ended, so that all of a large source is used
before any row repeats. Without weights each row of each source occurs once. Streams are mixed by smooth weighted round
robin, until the next stream in turn has ended.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft_host.data.load import open_source
from ft_host.data.order import in_proportion, permutation
from ft_host.data.sources import Source, Stream, digest
from ft_host.errors import DataError
from ft_host.types import Row
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config import RunConfig


KEYS = ("path", "name", "split", "data_files", "revision", "weight", "columns")


def open_mixture(items: list[dict[str, Any]], config: RunConfig, split: str, streaming: bool) -> Mixture | MixedStream:
    """Open the mixture of a list of {path, name, split, data_files, revision, weight, columns}. Raises DataError."""
    if not items:
        raise DataError("dataset: an empty list; expected {path, weight, ...} for each data set to mix")
    weights = []
    for number, item in enumerate(items):
        for key in item:
            if key not in KEYS:
                raise DataError(
                    f"dataset[{number}]: unknown key {key}{nearest(key, KEYS)}; there are {', '.join(KEYS)}"
                )
        if not isinstance(item.get("path"), str):
            raise DataError(f"dataset[{number}]: has no path")
        weight = item.get("weight")
        if weight is not None and (isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0):
            raise DataError(f"dataset[{number}]: weight: found {weight!r}, expected a number above 0")
        weights.append(weight)
    lacking = [str(number) for number, weight in enumerate(weights) if weight is None]
    if lacking and len(lacking) < len(items):
        raise DataError(f"dataset: item {', '.join(lacking)} has no weight; give all of them one, or none")
    if lacking and streaming:
        raise DataError("dataset: streams have no known length, so each needs a weight")
    sources = [
        open_source(
            item["path"],
            name=item.get("name"),
            revision=item.get("revision"),
            split=item.get("split") or split,
            data_files=item.get("data_files"),
            streaming=streaming,
            columns=item.get("columns") or config.dataset_columns,
        )
        for item in items
    ]
    return MixedStream(sources, weights) if streaming else Mixture(sources, None if lacking else weights)


class Mixture:
    """Sources of known length as one source. Rows are numbered through all sources, one after the other."""

    def __init__(self, sources: list[Source], weights: list[float] | None):
        self.sources = sources
        sizes = [source.num_rows for source in sources]
        self.offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        self.counts = sizes
        if weights is not None:
            length = min(size / weight for size, weight in zip(sizes, weights, strict=True))
            self.counts = [int(length * weight + 1e-9) for weight in weights]
        for source, count in zip(sources, self.counts, strict=True):
            if not count:
                raise DataError(
                    f"dataset: with these weights an epoch has no row of {source.label}; it ends when the shortest "
                    f"source does ({', '.join(f'{other.label}: {other.num_rows} rows' for other in sources)})"
                )
        self.num_rows = sum(self.counts)
        self.weights = weights
        self.columns = list(dict.fromkeys(name for source in sources for name in source.columns))
        self.fingerprint = digest([source.fingerprint for source in sources], weights)

    def describe(self) -> dict[str, Any]:
        return described(self)

    def place(self, index: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self.offsets, index) - 1
        return self.sources[number], index - self.offsets[number]

    def where(self, index: int) -> str:
        source, at = self.place(index)
        return source.where(at)

    def read(self, index: int) -> Row:
        source, at = self.place(index)
        return source.read(at)

    def order(self, seed: int, epoch: int, shuffled: bool) -> Callable[[int], int]:
        """Return a function from the position in an epoch to the index of its row."""
        starts = [sum(self.counts[:number]) for number in range(len(self.counts))]
        if shuffled:
            shuffle = permutation(self.num_rows, seed, epoch, "mixture")
        else:
            interleaved = in_proportion(self.counts)
        # The order within a source is the same in each pass, so that no epoch holds a row twice.
        within = [source.order(seed + number, 0, shuffled) for number, source in enumerate(self.sources)]

        def at(position: int) -> int:
            if shuffled:
                slot = shuffle(position)
                number = bisect.bisect_right(starts, slot) - 1
                ordinal = slot - starts[number]
            else:
                number, ordinal = interleaved[position]
            row = (epoch * self.counts[number] + ordinal) % self.sources[number].num_rows
            return self.offsets[number] + within[number](row)

        return at


class HeldOut(Mixture):
    """Evaluation sets by name. Each is evaluated by itself; as one source they are all their rows."""

    def __init__(self, sets: dict[str, Source | Mixture]):
        super().__init__(list(sets.values()), None)
        self.sets = sets

    def describe(self) -> dict[str, Any]:
        parts = [{**source.describe(), "name": name} for name, source in self.sets.items()]
        return {**described(self), "sources": parts}


class MixedStream:
    """Streams as one stream."""

    num_rows = None

    def __init__(self, sources: list[Stream], weights: list[float]):
        self.sources, self.weights = sources, weights
        self.columns = list(dict.fromkeys(name for source in sources for name in source.columns))
        self.fingerprint = digest([source.fingerprint for source in sources], weights)

    def describe(self) -> dict[str, Any]:
        return described(self)

    def turns(self) -> Iterator[int]:
        """Yield the index of the source that is next: the one furthest behind its share."""
        credit = [0.0] * len(self.weights)
        while True:
            credit = [have + weight for have, weight in zip(credit, self.weights, strict=True)]
            chosen = max(range(len(credit)), key=credit.__getitem__)
            credit[chosen] -= sum(self.weights)
            yield chosen

    def stream(self, skip: int = 0) -> Iterator[tuple[str, Row]]:
        """Yield (where, row) in order, from row `skip` on."""
        turns = self.turns()
        counts = [0] * len(self.sources)
        for _ in range(skip):
            counts[next(turns)] += 1
        rows = [source.stream(count) for source, count in zip(self.sources, counts, strict=True)]
        for chosen in turns:
            following = next(rows[chosen], None)
            if following is None:
                return
            yield following


def described(mix: Mixture | MixedStream) -> dict[str, Any]:
    parts = [source.describe() for source in mix.sources]
    if mix.weights is not None:
        parts = [{**part, "weight": weight} for part, weight in zip(parts, mix.weights, strict=True)]
    return {
        "path": ", ".join(part["path"] for part in parts),
        "rows": mix.num_rows,
        "fingerprint": mix.fingerprint,
        "columns": mix.columns,
        "sources": parts,
    }
