"""A micro-batch: one flat row of tokens without padding, made of segments that form prefix trees.

A segment's tokens attend, causally, to their own segment and to all of its ancestors. Two roots never attend to each
other. This one layout holds batches without padding, packed documents, and a prompt shared by several completions.

`labels` follow the usual convention: aligned with `input_ids`, -100 where a token is not supervised. The last token of
the parent predicts the first token of a child; nothing predicts the first token of a root.
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
    """Consecutive tokens. `row`: the row of the micro-batch that the targets in it belong to."""

    input_ids: list[int]
    labels: list[int]
    row: int
    parent: int | None = None  # the index of an earlier segment, None for a root


@old_keywords({"beside": "linked"})
@dataclass(kw_only=True)
class Batch:
    """What `ft_collate` returns and `ft_loss` receives.

    T tokens in S segments; N targets (supervised tokens that a token predicts); R rows.
    """

    input_ids: torch.Tensor  # (T,) long
    position_ids: torch.Tensor  # (T,) long; positions of a child continue those of its parent
    lengths: list[int]  # (S,) tokens of each segment, in the order of input_ids
    parents: list[int]  # (S,) index of the parent segment, -1 for a root
    sources: torch.Tensor  # (N,) long; index in input_ids of the token whose hidden state predicts the target
    targets: torch.Tensor  # (N,) long; the token to predict
    rows: torch.Tensor  # (N,) long in [0, R); the row a target belongs to
    ends: torch.Tensor  # (R,) long; index in input_ids of the last token of each row: where a score is read
    num_rows: int  # R
    columns: dict[str, torch.Tensor] = field(default_factory=dict)  # the method's own
    counts: dict[str, float] = field(default_factory=dict)  # the host sums them over micro-batches and ranks
    empty: bool = False  # no segments: the one token is a placeholder
    linked: dict[str, Batch] = field(
        default_factory=dict
    )  # the same rows, for auxiliary models that see other segments

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch, and the linked ones, with tensors on `device`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        columns = {name: value.to(device, non_blocking=True) for name, value in self.columns.items()}
        linked = {name: batch.to(device) for name, batch in self.linked.items()}
        return replace(self, columns=columns, linked=linked, **moved)

    @property
    def num_tokens(self) -> int:
        """Tokens if nothing were shared: a prompt counts once for each of its completions. 0 without segments."""
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

    A batch may have no segments: a rank that has no rows left in an optimizer step, or rows that give nothing to learn,
    still takes part in the collectives of the others. Such a batch holds one token and no target.

    `ends` is the last token of each row's last segment; with `pad_token_id`, the last token that isn't that token,
    which is where transformers' sequence classifiers read the score.

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
    """Return the number of targets in a root segment with these labels: nothing predicts the first token of a root."""
    return sum(label != IGNORE for label in labels[1:])
