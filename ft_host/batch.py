"""A micro-batch: one flat row of tokens without padding, made of segments that form prefix trees.

A segment's tokens attend, causally, to their own segment and to all of its ancestors. Two roots never attend to each
other. This one layout holds batches without padding, packed documents, and a prompt shared by several completions.

`labels` follow the usual convention: aligned with `input_ids`, -100 where a token is not supervised. The last token of
the parent predicts the first token of a child; nothing predicts the first token of a root.

The N targets of a batch (supervised tokens that something predicts) stand in the order of segments, and within a
segment in that of its tokens. A column with a value a target follows the same order. Where one row has targets of
several kinds (of its prompt and of its completion), segments say which (`Segment.kind`) and `Batch.kinds` has a mask
for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ft_host.types import Row
from ft_host.util.moved import names_of, old_keywords

if TYPE_CHECKING:
    import torch

IGNORE = -100
__getattr__ = names_of(__name__)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive tokens. `row`: the row of the micro-batch that the targets in it belong to."""

    input_ids: list[int]
    labels: list[int]
    row: int
    parent: int | None = None  # the index of an earlier segment, None for a root
    kind: str | None = None  # of its targets: one of the `kinds` that `flat_batch` is given; None where there are none


@old_keywords
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
    kinds: dict[str, torch.Tensor] = field(default_factory=dict)  # (N,) bool each: which targets are of that kind
    linked: dict[str, Batch] = field(
        default_factory=dict
    )  # the same rows, for auxiliary models that see other segments
    host: dict[str, Any] = field(default_factory=dict)  # the method's own that stays on the host, wherever tensors go
    row_sizes: list[int] = field(
        default_factory=list
    )  # (R,) targets of each row, counted on the host; empty: when made

    def __post_init__(self) -> None:
        if not self.row_sizes:  # a device would have to be waited for
            self.row_sizes = self.rows.bincount(minlength=self.num_rows).tolist()

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch, and the linked ones, with tensors on `device`. What is on the host goes there in one
        copy. Columns in float64 become float32 where the device has none."""
        from ft_host.util.transfer import to_device

        return self._with(iter(to_device(list(self._tensors()), device)))

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from (self.input_ids, self.position_ids, self.sources, self.targets, self.rows, self.ends)
        yield from self.columns.values()
        yield from self.kinds.values()
        for batch in self.linked.values():
            yield from batch._tensors()

    def _with(self, tensors: Iterator[torch.Tensor]) -> Batch:
        """Return the same batch with other tensors, in the order of `_tensors`."""
        return replace(
            self,
            input_ids=next(tensors),
            position_ids=next(tensors),
            sources=next(tensors),
            targets=next(tensors),
            rows=next(tensors),
            ends=next(tensors),
            columns={name: next(tensors) for name in self.columns},
            kinds={name: next(tensors) for name in self.kinds},
            linked={name: batch._with(tensors) for name, batch in self.linked.items()},
        )

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


def flat_batch(
    segments: list[Segment],
    *,
    num_rows: int,
    columns: dict[str, torch.Tensor] | None = None,
    counts: Mapping[str, float] | None = None,
    pad_token_id: int | None = None,
    kinds: Sequence[str] = (),
) -> Batch:
    """Lay segments out as one flat row of tokens.

    A batch may have no segments: a rank that has no rows left in an optimizer step, or rows that give nothing to learn,
    still takes part in the collectives of the others. Such a batch holds one token and no target.

    `ends` is the last token of each row's last segment; with `pad_token_id`, the last token that isn't that token,
    which is where transformers' sequence classifiers read the score.

    `kinds`: the kinds of targets that there are, each of which gets a mask, in a batch without such targets too.

    Raises ValueError for a parent that doesn't come before its child, an empty segment, labels of another length, a row
    that isn't below `num_rows`, or a kind that isn't one of `kinds`.
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
    kinds_of_targets: list[str | None] = []
    for index, segment in enumerate(segments):
        size = len(segment.input_ids)
        if not size or len(segment.labels) != size:
            raise ValueError(f"segment {index}: {size} input_ids and {len(segment.labels)} labels")
        if num_rows and not 0 <= segment.row < num_rows:
            raise ValueError(f"segment {index}: row {segment.row}, and num_rows is {num_rows}")
        if segment.parent is not None and not 0 <= segment.parent < index:
            raise ValueError(f"segment {index}: its parent {segment.parent} must be an earlier segment")
        if segment.kind is not None and segment.kind not in kinds:
            raise ValueError(f"segment {index}: kind {segment.kind!r}, expected one of flat_batch's kinds {kinds}")
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
            kinds_of_targets.append(segment.kind)
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
        counts=dict(counts or {}),
        empty=empty,
        kinds={kind: torch.tensor([each == kind for each in kinds_of_targets], dtype=torch.bool) for kind in kinds},
    )


def count_targets(labels: list[int]) -> int:
    """Return the number of targets in a root segment with these labels: nothing predicts the first token of a root."""
    return sum(label != IGNORE for label in labels[1:])


# ---------------------------------------------------------------- values of targets


def per_target(rows: list[Row], name: str) -> torch.Tensor:
    """Return a column with a value for each target, of all rows, in the order of the batch's targets: (N,) float32."""
    import torch

    return torch.tensor([value for row in rows for value in row[name]], dtype=torch.float32)


def by_row(values: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
    """Split (N,) values of targets by row: R tensors."""
    return list(values.split(batch.row_sizes))


def sum_by_row(values: torch.Tensor, batch: Batch, kind: str | None = None) -> torch.Tensor:
    """Sum (N,) values of targets by row: (R,). With `kind`, only those of targets of that kind. Raises KeyError for a
    kind that the batch doesn't have."""
    if kind is not None:
        values = values * batch.kinds[kind]
    return values.new_zeros(batch.num_rows).index_add(0, batch.rows, values)


# ---------------------------------------------------------------- pairs

PAIR = ("chosen", "rejected")
PAIR_KINDS = ("prompt", "completion")


def pair_batch(rows: list[Row], *, supervise_prompt: bool = False, columns: Sequence[str] = ()) -> Batch:
    """Lay pairs out, as `ft_host.data.pair_row` makes them: row 2i is pair i's prompt with its chosen completion, row
    2i + 1 its rejected one. P pairs, R = 2 P rows.

    The prompt is a root with the two completions as its children, so that it is computed once; a pair without a prompt
    is two roots, whose first tokens nothing predicts. Targets are of the kinds "completion" and, with
    `supervise_prompt`, "prompt": those count once a pair and belong to the row of the chosen completion.

    `columns`: numbers of rows that become columns, (P,) float32 each; one that not all rows have (they are not
    annotated yet) is left out. Counts: `pairs`, and of targets `tokens` (of completions), `chosen_tokens`,
    `rejected_tokens` and, with `supervise_prompt`, `prompt_tokens`.
    """
    import torch

    segments: list[Segment] = []
    tokens = dict.fromkeys(("prompt", *PAIR), 0)
    for pair, row in enumerate(rows):
        prompt, parent = row["prompt_ids"], None
        if prompt:
            parent = len(segments)
            labels = prompt if supervise_prompt else [IGNORE] * len(prompt)
            segments.append(Segment(input_ids=prompt, labels=labels, row=2 * pair, kind="prompt"))
            tokens["prompt"] += count_targets(labels)
        for offset, name in enumerate(PAIR):
            ids = row[f"{name}_ids"]
            kept = Segment(input_ids=ids, labels=ids, row=2 * pair + offset, parent=parent, kind="completion")
            segments.append(kept)
            tokens[name] += len(ids) if prompt else count_targets(ids)
    made = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float32)
        for name in columns
        if all(name in row for row in rows)
    }
    batch = flat_batch(segments, num_rows=2 * len(rows), columns=made, kinds=PAIR_KINDS)
    batch.counts = {
        "pairs": len(rows),
        "tokens": tokens["chosen"] + tokens["rejected"],
        **{f"{name}_tokens": count for name, count in tokens.items() if name in PAIR or supervise_prompt},
    }
    return batch


def pair_sums(values: torch.Tensor, batch: Batch, kind: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum (N,) values of the targets of a `pair_batch` by completion: (P,) of chosen, (P,) of rejected ones. With
    `kind`, only of targets of that kind: "completion", or "prompt", which all belong to the chosen ones."""
    chosen, rejected = sum_by_row(values, batch, kind).view(batch.num_rows // 2, 2).unbind(1)
    return chosen, rejected


def pair_means(values: torch.Tensor, batch: Batch, kind: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, divided by the number of those targets; 0 without targets."""
    import torch

    sums, sizes = pair_sums(values, batch, kind), pair_sums(torch.ones_like(values), batch, kind)
    return sums[0] / sizes[0].clamp(min=1), sums[1] / sizes[1].clamp(min=1)
