"""Where the segments of a flat batch are, and who sees whom.

Segments form prefix trees: a token attends, causally, to its own segment and to all of its ancestors. Told in
depth-first order of tokens this is an interval for each key: the key with place `order[k]` is seen by the queries with
places from `order[k]` to before `leave[k]`, the end of its segment's subtree. So a mask needs a few numbers a token,
and no table of segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ft_host.errors import FtHostError


class NotFlat(FtHostError):
    """This model can't take a flat batch; the message says why."""


@dataclass
class Choice:
    """`said`: what the plan says of a policy's kernels. `refused`: why they aren't those that the device is meant to
    have, None where they are."""

    said: str = ""
    refused: str | None = None


@dataclass(eq=False)
class Layout:
    """Where the segments of a flat batch are, and their masks, shared by all layers of a forward.

    `kernel`: a name in `attention.KERNELS`.
    """

    lengths: list[int]
    parents: list[int]
    device: torch.device
    kernel: str = "sdpa"
    masks: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chains: list[list[int]] = []  # ancestors of each segment, root first
        for parent in self.parents:
            self.chains.append([] if parent < 0 else [*self.chains[parent], parent])
        self.before = [sum(self.lengths[ancestor] for ancestor in chain) for chain in self.chains]

    def mask(self, segment: int, window: int | None) -> torch.Tensor | None:
        """Return (length, before + length) bool: what the tokens of `segment` see of its ancestors and itself.

        None where plain causal attention is the same.
        """
        length, before = self.lengths[segment], self.before[segment]
        if window is not None and window >= before + length:
            window = None
        if not before and window is None:
            return None
        key = (before, length, window)
        if key not in self.masks:
            query = torch.arange(before, before + length, device=self.device)[:, None]
            seen = torch.arange(before + length, device=self.device)[None, :]
            mask = seen <= query
            if window is not None:
                mask &= seen > query - window
            self.masks[key] = mask
        return self.masks[key]

    def added(self, segment: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Return `mask` as what is added to scores of that type. torch makes that of a bool mask in each call, and each
        layer keeps its own."""
        seen = self.mask(segment, window)
        if seen is None:
            return None
        key = (*seen.shape, window, dtype)
        if key not in self.masks:
            zero = torch.zeros((), dtype=dtype, device=self.device)
            self.masks[key] = torch.where(seen, zero, float("-inf"))
        return self.masks[key]


@dataclass(frozen=True, eq=False)
class FlatMask:
    """The attention mask that layers receive: the layout, and the window of this kind of layer (None: no limit)."""

    layout: Layout
    window: int | None


# ---------------------------------------------------------------- told by tokens, on the host


@dataclass(frozen=True)
class Intervals:
    """Three numbers for each of T tokens, (T,) int32 on the CPU.

    A query sees a key iff order[key] <= order[query] < leave[key], and, within a window of W tokens, position[query] -
    position[key] < W.
    """

    order: torch.Tensor
    leave: torch.Tensor
    position: torch.Tensor


def intervals(lengths: list[int], parents: list[int]) -> Intervals:
    """Return the intervals of the tokens of a forest; parents come before their children."""
    subtree = list(lengths)
    for index in reversed(range(len(lengths))):
        if parents[index] >= 0:
            subtree[parents[index]] += subtree[index]
    starts, before, free, roots = [], [], [], 0
    for index, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
        if parent < 0:
            start, roots = roots, roots + subtree[index]
        else:
            start = free[parent]
            free[parent] += subtree[index]
        starts.append(start)
        before.append(0 if parent < 0 else before[parent] + lengths[parent])
        free.append(start + length)
    sizes = torch.tensor(lengths)
    inside = torch.arange(int(sizes.sum())) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)

    def spread(values: list[int]) -> torch.Tensor:
        return torch.repeat_interleave(torch.tensor(values), sizes)

    ends = [start + size for start, size in zip(starts, subtree, strict=True)]
    return Intervals(
        order=(spread(starts) + inside).int(), leave=spread(ends).int(), position=(spread(before) + inside).int()
    )


# ---------------------------------------------------------------- told by blocks, on the host


def blocks(lengths: list[int], parents: list[int], window: int | None, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which blocks of keys the blocks of queries see, in part or in full: two (B, B) bools, B blocks of `size`
    tokens.

    In part: some pair of the two is seen, and not all. A block that the last tokens don't fill is never seen in full,
    nor are its queries' blocks: a kernel must look at where it ends. Nothing here has the size of tokens by tokens.
    """
    sizes = torch.tensor(lengths)
    ends = sizes.cumsum(0)
    total = int(ends[-1])
    count = -(-total // size)
    # pieces: runs of tokens in one block and one segment
    starts = torch.unique(torch.cat([ends - sizes, torch.arange(0, total, size)]))
    stops = torch.cat([starts[1:], torch.tensor([total])])
    segment = torch.searchsorted(ends, starts, right=True)

    # relations: a piece of queries, and a segment that it sees
    before, seen = [], []
    chains: list[list[int]] = []
    for index, parent in enumerate(parents):
        chains.append([*(chains[parent] if parent >= 0 else []), index])
        before.append(before[parent] + lengths[parent] if parent >= 0 else 0)
        seen.extend(chains[index])
    many = torch.tensor([len(chain) for chain in chains])
    first = (many.cumsum(0) - many)[segment]  # of a piece's segment in `seen`
    piece = torch.repeat_interleave(torch.arange(len(starts)), many[segment])
    nth = torch.arange(len(piece)) - torch.repeat_interleave(many[segment].cumsum(0) - many[segment], many[segment])
    key = torch.tensor(seen)[first[piece] + nth]

    # positions, of the piece's first and last query, and of the segment's first key and the one after its last
    at = torch.tensor(before)
    begin = (ends - sizes)[segment[piece]]
    low = starts[piece] - begin + at[segment[piece]]
    high = stops[piece] - 1 - begin + at[segment[piece]]
    left, right = at[key], at[key] + sizes[key]
    to_tokens = (ends - sizes)[key] - left
    reach = total if window is None else window
    some = _ranges((low - reach + 1).clamp(min=left), (high + 1).clamp(max=right), to_tokens)
    every = _ranges((high - reach + 1).clamp(min=left), (low + 1).clamp(max=right), to_tokens)

    of_block = starts // size
    touched = _covered(piece, *some, len(starts), count, size) > 0
    filled = _covered(piece, *every, len(starts), count, size) == size
    if total % size:
        filled[of_block == count - 1] = False
    any_of = torch.zeros(count, count, dtype=torch.int32).index_add_(0, of_block, touched.int()) > 0
    not_all = torch.zeros(count, count, dtype=torch.int32).index_add_(0, of_block, (~filled).int()) > 0
    return any_of & not_all, ~not_all


def _ranges(first: torch.Tensor, after: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions from `first` to before `after` as places in the flat batch; an empty range where there are none."""
    return first + shift, torch.maximum(first, after) + shift


def _covered(
    piece: torch.Tensor, first: torch.Tensor, after: torch.Tensor, pieces: int, count: int, size: int
) -> torch.Tensor:
    """Return (pieces, count): how many tokens of each block are in the ranges of each piece, which don't overlap.

    The tokens before a place fill the blocks before its own, and its own in part: a step up and two down, summed over
    blocks.
    """
    steps = torch.zeros(pieces, count + 2, dtype=torch.int32)
    for place, sign in ((after, 1), (first, -1)):
        block, rest = place // size, (place % size).int()
        steps[:, 0].index_add_(0, piece, torch.full_like(rest, sign * size))
        steps.index_put_((piece, block), sign * (rest - size), accumulate=True)
        steps.index_put_((piece, block + 1), -sign * rest, accumulate=True)
    return steps.cumsum(1, dtype=torch.int32)[:, :count]


def table(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of a (B, C) bool the (B,) number of true entries of each row, and (B, C) their columns, in order and
    followed by zeros; int32."""
    places = dense.cumsum(1, dtype=torch.int32)
    rows, columns = dense.nonzero(as_tuple=True)
    listed = torch.zeros(dense.shape, dtype=torch.int32)
    listed[rows, places[rows, columns].long() - 1] = columns.int()
    return places[:, -1].contiguous(), listed
