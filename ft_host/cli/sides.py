"""What `ft-host data` shows of a row: the texts of its batch, as `ft_collate` makes it, and which tokens are learnt.

Columns of the row only lend their names: a column that holds the tokens of a text is what the text is called after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.types import Row

if TYPE_CHECKING:
    from ft_host.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Side:
    """Tokens under a heading. `labels` are the tokens, with IGNORE where nothing is learnt."""

    name: str
    ids: list[int]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """A row as it is learnt from: what its texts have in common, and each of them without that."""

    shared: Side | None
    sides: list[Side]
    supervised: int  # tokens that are learnt from, each once; where a score is learned, those that it is read at
    last: list[int]  # the last of them in each text
    tokens: int  # of the batch

    @property
    def whole(self) -> bool:
        """Whether it is one text without parts."""
        return self.shared is None and len(self.sides) == 1


def sides_of(row: Row, collate: Callable[[Row], Batch], scored: bool) -> Sides:
    """`collate` makes the batch of one row; `scored`: the model gives each row of it a score."""
    from ft_host.data.texts import texts_of

    batch = collate(row)
    ends = set(batch.ends.tolist()) if scored else set()
    texts = [
        (text.ids, [place in ends for place in text.places] if scored else text.supervised, text.before)
        for text in texts_of(batch)
    ]
    columns = {name: value for name, value in row.items() if is_tokens(value)}
    cuts = [_cut(ids, before, columns) for ids, _, before in texts]
    if len(texts) > 1:
        cuts = _apart(cuts, [ids for ids, _, _ in texts])
    sides, shared, taken = [], None, set()
    for number, ((ids, learnt, _), (start, head, names)) in enumerate(zip(texts, cuts, strict=True), 1):
        labels = [token if at else IGNORE for token, at in zip(ids, learnt, strict=True)]
        name = next((each for each in names if each not in taken), f"text {number}")
        taken.add(name)
        sides.append(Side(name=name.removesuffix("_ids"), ids=ids[start:], labels=labels[start:]))
        if start and shared is None:
            shared = Side(name=head.removesuffix("_ids"), ids=ids[:start], labels=labels[:start])
    last = [[token for token, at in zip(ids, learnt, strict=True) if at][-1:] for ids, learnt, _ in texts]
    return Sides(
        shared=shared,
        sides=sides,
        supervised=len(ends) if scored else len(batch.targets),
        last=[token for each in last for token in each],
        tokens=0 if batch.empty else len(batch.input_ids),
    )


def is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int and each >= 0 for each in value)


def _cut(ids: list[int], before: int, columns: dict[str, list[int]]) -> tuple[int, str, list[str]]:
    """Where a text is cut into what it begins with and what it is about, and the names of both: two columns that are
    the text, one behind the other; else where the batch cuts it."""
    whole = [name for name, value in columns.items() if value == ids]
    for head, value in columns.items():
        size = len(value)
        names = [name for name, rest in columns.items() if rest == ids[size:]] if ids[:size] == value else []
        if names:
            return size, head, names
    return (0, "", whole) if whole else (before, "shared", [])


def _apart(cuts: list[tuple[int, str, list[str]]], texts: list[list[int]]) -> list[tuple[int, str, list[str]]]:
    """Texts that are shown beside each other begin with the same, or with nothing that is shown before them."""
    starts = {tuple(ids[:start]) for (start, _, _), ids in zip(cuts, texts, strict=True)}
    return cuts if len(starts) == 1 else [(0, "", names) for _, _, names in cuts]
