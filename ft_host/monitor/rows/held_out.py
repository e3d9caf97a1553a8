"""Training rows beside held-out ones: what holds there and not here is wrong here.

Whether a completion belongs to its prompt can't be told of a task that nobody has described. But where held-out
completions are more like their own prompts than like others, and training completions aren't, these were joined
wrongly.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from ft_host.monitor.rows import signs
from ft_host.monitor.rows.across import TURNS, words_of
from ft_host.monitor.rows.exchanges import answer_of
from ft_host.monitor.rows.read import Seen

LEAST = 32  # rows of either kind
CERTAIN = 5  # standard errors
Texts = list[tuple[str, str]]  # a prompt and what belongs to it


def beside_held_out(rows: list[Seen], apart: list[Seen], by_rollout: bool) -> dict[str, Any]:
    """Facts: columns that don't belong to their prompts, and prompt and completion exchanged, as held-out rows show."""
    if len(rows) < LEAST or len(apart) < LEAST:
        return {}
    facts: dict[str, Any] = {}
    for column in sorted({*columns_of(rows)} & {*columns_of(apart)}):
        facts |= misjoined(column, texts_of(rows, column), texts_of(apart, column))
    here, there = agreement(rows), agreement(apart)
    if not facts and here is not None and there is not None and there > 0.8 and here < 0.3:
        column = "answer" if by_rollout else "completion"
        facts[f"data/misjoined/{column}"] = here / there
        facts[f"data/misjoined_by/{column}"] = (
            f"{percent(here)} of the completions end with the row's answer, and {percent(there)} of the held-out ones"
        )
    return facts | exchanged(rows, apart)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def columns_of(rows: list[Seen]) -> Iterable[str]:
    return (name for row in rows for name in (*(part.column for part in row.parts), *row.columns))


def texts_of(rows: list[Seen], column: str) -> Texts:
    found = []
    for row in rows:
        said = next((part.said for part in row.of(column)), row.columns.get(column))
        if row.prompt and isinstance(said, str) and said.strip():
            found.append((row.prompt, said))
    return found


# ---------------------------------------------------------------- completions of other prompts


def misjoined(column: str, here: Texts, there: Texts) -> dict[str, Any]:
    """Whether a column is like its own prompts in held-out rows, and no more than like others' in training rows: by
    their signs, or by their words."""
    if min(len(here), len(there)) < LEAST:
        return {}
    for of, what in ((signs_of, "signs"), (words_of, "words")):
        known, doubt = likeness(there, of)
        if known < CERTAIN * doubt or not known:
            continue
        found, also = likeness(here, of)
        if found < 0.25 * known and found < 3 * also:
            by = f"by their {what} held-out ones are like their own prompts, and these no more than like other prompts"
            return {f"data/misjoined/{column}": max(found, 0.0) / known, f"data/misjoined_by/{column}": by}
    return {}


def likeness(texts: Texts, of: Callable[[str], set[str]]) -> tuple[float, float]:
    """By how much more a text is like its own prompt than like others', on average; and the standard error of that."""
    asked, said = ([of(text[side]) for text in texts] for side in (0, 1))
    size = len(texts)
    more = [
        common(prompt, said[at])
        - sum(common(prompt, said[(at + 1 + turn * (size - 1) // TURNS) % size]) for turn in range(TURNS)) / TURNS
        for at, prompt in enumerate(asked)
    ]
    return statistics.fmean(more), statistics.stdev(more) / math.sqrt(size)


def common(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def signs_of(text: str) -> set[str]:
    return {sign for sign in text.lower() if not sign.isspace()}


def agreement(rows: list[Seen]) -> float | None:
    """The share of completions that end with their row's answer; None where too few rows have both."""
    known = [(answer_of(row), row.parts[0].said) for row in rows if row.parts and row.label is None]
    plain = [(answer, signs.MARK.sub("", said)) for answer, said in known if answer is not None]
    found = [signs.ends_with(said, answer) for answer, said in plain if said.strip()]
    return statistics.fmean(found) if len(found) >= LEAST else None


# ---------------------------------------------------------------- exchanged columns


def exchanged(rows: list[Seen], apart: list[Seen]) -> dict[str, Any]:
    """Whether prompts end with the signs that held-out completions end with and held-out prompts don't, and the other
    way round."""
    here, there = (texts_of(each, "completion") for each in (rows, apart))
    if min(len(here), len(there)) < LEAST:
        return {}
    prompts, completions = ({text[side].rstrip()[-1:] for text in there} for side in (0, 1))
    of_prompts, of_completions = prompts - completions, completions - prompts
    asked, said = ([text[side].rstrip()[-1:] for text in here] for side in (0, 1))
    turned = [one in of_completions and other in of_prompts for one, other in zip(asked, said, strict=True)]
    if statistics.fmean(turned) < 0.8:
        return {}
    return {
        "data/exchanged": statistics.fmean(turned),
        "data/exchanged_by": "prompts end as held-out completions do, and completions as held-out prompts do",
        "data/exchanged_surely": True,
    }
