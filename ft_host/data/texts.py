"""The texts of a batch, and which of their tokens are supervised: read off what `ft_collate` made, whatever the method.

A leaf of the batch's forest, with all that it follows on, is a text that is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from ft_host.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Text:
    """A leaf of a batch. `before` of its tokens are those of its ancestors, which it may share with other texts."""

    ids: list[int]
    supervised: list[bool]  # whether a target is at each token
    before: int
    places: list[int]  # of each token in the batch

    @property
    def own(self) -> list[bool]:
        """Whether its own tokens are supervised, without those of its ancestors."""
        return self.supervised[self.before :]


def texts_of(batch: Batch) -> list[Text]:
    """The texts of a batch, in the order of their last segments; none of a batch without segments."""
    if batch.empty:
        return []
    ids, marked = batch.input_ids.tolist(), supervised_tokens(batch)
    start, found = 0, []
    for size, parent in zip(batch.lengths, batch.parents, strict=True):
        end = start + size
        above = found[parent] if parent >= 0 else Text(ids=[], supervised=[], before=0, places=[])
        found.append(
            Text(
                ids=above.ids + ids[start:end],
                supervised=above.supervised + marked[start:end],
                before=len(above.ids),
                places=above.places + list(range(start, end)),
            )
        )
        start = end
    inner = set(batch.parents)
    return [text for index, text in enumerate(found) if index not in inner]


def supervised_tokens(batch: Batch) -> list[bool]:
    """Whether a target is at each of the T tokens. `sources` say what predicts a target: the token before it, which for
    the first token of a child is the last one of its parent. Of several children that begins the first whose token is
    the target and has none yet."""
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
