"""A micro-batch: a forest of segments in one flat row of tokens, without padding.

A segment's tokens see, causally, their own segment and everything in their ancestors. Two roots never see each other.
That one layout holds batches without padding, packed documents, and a prompt shared by several completions.

`labels` follow the convention of the field: aligned with `input_ids`, -100 where a token is not supervised. The first
token of a child is predicted by the last token of its parent; the first token of a root is predicted by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ft_host.util.moved import names_of, old_keywords

if TYPE_CHECKING:
    import torch

IGNORE = -100
__getattr__ = names_of(__name__, {"forest": "ft_host.batch:flat_batch"})


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens that follow each other. `row` says which row of the micro-batch the targets in it belong to."""

    input_ids: list[int]
    labels: list[int]
    row: int
    parent: int | None = None  # the index of an earlier segment, None for a root


@old_keywords({"beside": "linked"})
@dataclass(kw_only=True)
class Batch:
    """What `ft_collate` returns and `ft_loss` is handed.

    T tokens in S segments; N targets (supervised tokens that something predicts); R rows.
    """

    input_ids: torch.Tensor  # (T,) long
    position_ids: torch.Tensor  # (T,) long; a child goes on counting where its parent ended
    lengths: list[int]  # (S,) tokens of each segment, in the order of input_ids
    parents: list[int]  # (S,) index of the parent segment, -1 for a root
    sources: torch.Tensor  # (N,) long; index in input_ids of the token whose hidden state predicts the target
    targets: torch.Tensor  # (N,) long; the token to predict
    rows: torch.Tensor  # (N,) long in [0, R); the row a target belongs to
    ends: torch.Tensor  # (R,) long; index in input_ids of the last token of each row: where a score is read
    num_rows: int  # R
    columns: dict[str, torch.Tensor] = field(default_factory=dict)  # the method's own
    counts: dict[str, float] = field(default_factory=dict)  # what the host totals over micro-batches and ranks
    empty: bool = False  # there are no segments: the one token that is there stands for none
    linked: dict[str, Batch] = field(default_factory=dict)  # of the same rows, for companions that see other segments

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`, and those beside it."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        columns = {name: value.to(device, non_blocking=True) for name, value in self.columns.items()}
        linked = {name: batch.to(device) for name, batch in self.linked.items()}
        return replace(self, columns=columns, linked=linked, **moved)

    @property
    def num_tokens(self) -> int:
        """Tokens as if nothing were shared: a prompt counts once for each completion of it. 0 without segments."""
        if self.empty:
            return 0
        before = [0] * len(self.lengths)
        for index, parent in enumerate(self.parents):
            before[index] = self.lengths[index] + (before[parent] if parent >= 0 else 0)
        inner = set(self.parents)
        return sum(size for index, size in enumerate(before) if index not in inner)


TENSORS = ("input_ids", "position_ids", "sources", "targets", "rows", "ends")


def flat_batch(
    segments: list[Segment],
    *,
    num_rows: int,
    columns: dict[str, torch.Tensor] | None = None,
    counts: dict[str, float] | None = None,
    pad_token_id: int | None = None,
) -> Batch:
    """Lay segments out as one flat row of tokens.

    A batch without segments is legal: ranks that have nothing left in an optimizer step, or rows that nothing is learnt
    from, still take part in the collectives of the others. It holds one token and no target.

    `ends` are the last tokens of each row's last segment; with `pad_token_id`, the last that are not that token, which
    is where transformers' sequence classifiers look.

    Raises ValueError for a parent that doesn't come before its child, an empty segment, or labels of another length.
    """
    import torch

    ends_of_rows = [0] * num_rows
    empty = not segments
    if empty:
        segments = [Segment(input_ids=[0], labels=[IGNORE], row=0)]
    input_ids: list[int] = []
    position_ids: list[int] = []
    starts: list[int] = []
    ends: list[int] = []  # the position after the last token of each segment
    sources: list[int] = []
    targets: list[int] = []
    rows: list[int] = []
    for index, segment in enumerate(segments):
        size = len(segment.input_ids)
        if not size or len(segment.labels) != size:
            raise ValueError(f"segment {index}: {size} input_ids and {len(segment.labels)} labels")
        if segment.parent is not None and not 0 <= segment.parent < index:
            raise ValueError(f"segment {index}: its parent {segment.parent} must be an earlier segment")
        start = len(input_ids)
        first = 0 if segment.parent is None else ends[segment.parent]
        starts.append(start)
        ends.append(first + size)
        input_ids.extend(segment.input_ids)
        position_ids.extend(range(first, first + size))
        if num_rows:
            kept = size
            while kept > 1 and segment.input_ids[kept - 1] == pad_token_id:
                kept -= 1
            ends_of_rows[segment.row] = start + kept - 1
        for offset, label in enumerate(segment.labels):
            if label == IGNORE:
                continue
            if offset:
                source = start + offset - 1
            elif segment.parent is not None:
                source = starts[segment.parent] + len(segments[segment.parent].input_ids) - 1
            else:
                continue
            sources.append(source)
            targets.append(label)
            rows.append(segment.row)
    return Batch(
        input_ids=torch.tensor(input_ids, dtype=torch.long),
        position_ids=torch.tensor(position_ids, dtype=torch.long),
        lengths=[len(segment.input_ids) for segment in segments],
        parents=[-1 if segment.parent is None else segment.parent for segment in segments],
        sources=torch.tensor(sources, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        rows=torch.tensor(rows, dtype=torch.long),
        ends=torch.tensor(ends_of_rows, dtype=torch.long),
        num_rows=num_rows,
        columns=columns or {},
        counts=counts or {},
        empty=empty,
    )


def count_targets(labels: list[int]) -> int:
    """Targets that a root segment with these labels gives: the first token of a root is predicted by nothing."""
    return sum(label != IGNORE for label in labels[1:])
