"""The texts of a batch and their supervised tokens, read from the result of `ft_collate`, for any method.

A leaf of the batch's prefix trees, with all of its ancestors, is a text that is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Text:
    """A leaf of a batch. The first `before` tokens are its ancestors', which it may share with other texts."""

    ids: list[int]
    supervised: list[bool]  # whether each token is a target
    before: int
    places: list[int]  # of each token in the batch

    @property
    def own(self) -> list[bool]:
        """Whether each of its own tokens is supervised, without its ancestors' tokens."""
        return self.supervised[self.before :]


def texts_of(batch: Batch) -> list[Text]:
    """Return the texts of a batch, in the order of their last segments; none for a batch without segments."""
    if batch.empty:
        return []
    ids, marked = batch.input_ids.tolist(), supervised_tokens(batch)
    start, texts = 0, []
    for size, parent in zip(batch.lengths, batch.parents, strict=True):
        end = start + size
        above = texts[parent] if parent >= 0 else Text(ids=[], supervised=[], before=0, places=[])
        texts.append(
            Text(
                ids=above.ids + ids[start:end],
                supervised=above.supervised + marked[start:end],
                before=len(above.ids),
                places=above.places + list(range(start, end)),
            )
        )
        start = end
    inner = set(batch.parents)
    return [text for index, text in enumerate(texts) if index not in inner]


def supervised_tokens(batch: Batch) -> list[bool]:
    """Return whether each of the T tokens is a target.

    `sources` give the token that predicts a target: the one before it, which for the first token of a child is the last
    of its parent. Of several children it is the first one whose first token is the target and isn't taken yet.
    """
    ids, first, last = batch.input_ids.tolist(), [], {}
    start = 0
    for index, size in enumerate(batch.lengths):
        first.append(start)
        start += size
        last[start - 1] = index  # the position of a segment's last token
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(batch.parents):
        children.setdefault(parent, []).append(index)
    marked = [False] * len(ids)
    for source, target in zip(batch.sources.tolist(), batch.targets.tolist(), strict=True):
        if source not in last:
            marked[source + 1] = True
            continue
        free = [first[child] for child in children.get(last[source], []) if not marked[first[child]]]
        at = next((place for place in free if ids[place] == target), free[0] if free else None)
        if at is not None:
            marked[at] = True
    return marked
