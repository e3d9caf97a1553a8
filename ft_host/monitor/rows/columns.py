"""Facts about single columns of rows: what is blank, the same everywhere, broken, cut, or in another script.

A fact is a share of the rows that have the column, named after it: `data/blank/chosen`. It is absent where it would be
0. `data/said/blank/chosen` quotes one of them, with its place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from ft_host.monitor.rows import signs
from ft_host.monitor.rows.read import Seen

FORMATS = ("completion", "chosen", "rejected", "text")  # columns of texts, which may begin with white space
LEAST = 8  # rows from which shares are told
LONG = 40  # characters from which a text that stands in many rows is no label
PILE = 4  # times as many texts as of any other length: a length at which they are cut
WORD = re.compile(r"[^\W\d_]+")
Texts = list[tuple[str, Seen]]


def texts_by_column(rows: list[Seen]) -> dict[str, Texts]:
    """All texts of the rows, prompts and further columns among them, by column."""
    found: dict[str, Texts] = {}
    for row in rows:
        if row.prompt is not None:
            found.setdefault("prompt", []).append((row.prompt, row))
        for part in row.parts:
            found.setdefault(part.column, []).append((part.said, row))
        for name, value in row.columns.items():
            if isinstance(value, str):
                found.setdefault(name, []).append((value, row))
    return found


def column_facts(rows: list[Seen], marks: Iterable[str], learnt: bool) -> dict[str, Any]:
    """`marks`: special tokens, which say nothing. `learnt`: completions are imitated; whether they are empty is then
    told of the tokens that they become (`data/empty_completions`)."""
    if len(rows) < LEAST:
        return {}
    marks = tuple(marks)
    facts = blanks(rows, marks, learnt)
    for column, texts in texts_by_column(rows).items():
        if len(texts) < LEAST:
            continue
        found = Shares(column, texts)
        others = [text for text, _ in texts if signs.void(text) is None]
        never = signs.NEVER if are_labels(others) else (*signs.NEVER, *signs.MAYBE)
        found.tell("void", lambda text: signs.void(text) is not None)
        if f"data/void/{column}" in found.facts:
            facts[f"data/never/{column}"] = sum(signs.void(text) in never for text, _ in texts) / len(texts)
        found.tell("loops", signs.loops)
        if column not in ("prompt", *FORMATS):
            found.tell("spaced", lambda text: text != text.strip() and bool(text.strip()))
        if column != "prompt":
            facts |= cut(column, texts) | mid_word(column, texts)
        facts |= found.facts | same(column, texts) | scripts(column, texts)
    return facts | of_signs(rows)


class Shares:
    """Facts about the texts of a column, each with a quotation."""

    def __init__(self, column: str, texts: Texts):
        self.column, self.texts, self.facts = column, texts, {}

    def tell(self, kind: str, test: Callable[[str], bool]) -> None:
        bad = [(text, row) for text, row in self.texts if test(text)]
        if bad:
            self.facts[f"data/{kind}/{self.column}"] = len(bad) / len(self.texts)
            self.facts[f"data/said/{kind}/{self.column}"] = quoted(*bad[0])


def quoted(text: Any, row: Seen) -> str:
    return f"{signs.excerpt(text)} ({row.where})"


def blanks(rows: list[Seen], marks: tuple[str, ...], learnt: bool) -> dict[str, Any]:
    """What is blank: prompts, completions of pairs and judged ones, further columns; and thoughts without an answer."""
    facts: dict[str, Any] = {}
    values: dict[str, list[tuple[bool, Any, Seen]]] = {}
    thoughts = []
    for row in rows:
        if row.asked is not None:
            values.setdefault("prompt", []).append((signs.is_blank(row.asked, marks), row.asked, row))
        for part in row.parts:
            thoughts.append((part, row))
            whole = part.column in ("completion", "text") and not row.talks and row.label is None
            if not learnt or not whole:
                blank = signs.is_blank(part.said, marks) and not part.calls and not part.only_thoughts
                values.setdefault(part.column, []).append((blank, part.said, row))
        for name, value in row.columns.items():
            values.setdefault(name, []).append((signs.is_blank(value, marks), value, row))
    for name, found in values.items():
        bad = [(value, row) for blank, value, row in found if blank]
        if bad:
            facts[f"data/blank/{name}"] = len(bad) / len(found)
            facts[f"data/said/blank/{name}"] = quoted(*bad[0])
    unanswered = [row for row in rows if row.unanswered]
    if unanswered:
        facts |= {"data/unanswered": len(unanswered) / len(rows), "data/said/unanswered": unanswered[0].where}
    only = [row for part, row in thoughts if part.only_thoughts]
    if only:
        facts |= {"data/only_thoughts": len(only) / len(thoughts), "data/said/only_thoughts": only[0].where}
    return facts


def are_labels(texts: list[str]) -> bool:
    """Whether texts repeat as labels do: few are there once only."""
    return len(set(texts)) < 0.5 * len(texts)


def same(column: str, texts: Texts) -> dict[str, Any]:
    """The text that most rows share, where it is no label: all of them have it, or it is long, or the others differ
    from each other."""
    plain = [" ".join(text.split()) for text, _ in texts]
    text, count = Counter(plain).most_common(1)[0]
    if not text or count < LEAST or count < 0.1 * len(texts):
        return {}
    if count < len(texts) and len(text) < LONG:
        others = [each for each in plain if each != text]
        few_words = median(len(each.split()) for each in others) < 5
        if are_labels(others) or (few_words and count < 0.5 * len(texts)):
            return {}
    row = texts[plain.index(text)][1]
    return {
        f"data/same/{column}": count / len(texts),
        f"data/same_size/{column}": len(text),
        f"data/said/same/{column}": quoted(text, row),
    }


def cut(column: str, texts: Texts) -> dict[str, Any]:
    """Texts that were cut at a number of characters or words: many are as long as the longest, few as long as any
    other, and they don't end as texts do."""
    for unit, least, size in (("characters", LONG, len), ("words", 12, lambda text: len(text.split()))):
        sizes = Counter(size(text) for text, _ in texts)
        top = max(sizes)
        count = sizes.pop(top)
        at = [(text, row) for text, row in texts if size(text) == top]
        if top < least or count < max(4, 0.1 * len(texts)) or count < PILE * max(sizes.values(), default=0):
            continue
        open_ends = sum(text[-1].isalnum() or text[-1] in ", -" for text, _ in at)
        if open_ends < 0.6 * count or not any(" " in text for text, _ in at):
            continue
        if count > 0.9 * len(texts) and not (in_mid_word(texts, at) if unit == "characters" else is_prose(at)):
            continue
        return {
            f"data/cut/{column}": count / len(texts),
            f"data/cut_size/{column}": f"{top} {unit}",
            f"data/said/cut/{column}": f"…{signs.excerpt(at[0][0][-40:])} ({at[0][1].where})",
        }
    return {}


def is_prose(texts: Texts) -> bool:
    """Whether most texts have signs of sentences in them."""
    return sum(bool(re.search(r"[a-z]{3}[.,;:] ", text)) for text, _ in texts) > 0.5 * len(texts)


def mid_word(column: str, texts: Texts) -> dict[str, Any]:
    """Longer texts that end in a piece of a word: in letters that are no word in any of the texts, but how one of them
    begins."""
    long = [(text.rstrip("\n"), row) for text, row in texts if len(text.split()) >= 8]
    if len(long) < LEAST:
        return {}
    known: set[str] = set()
    for text, _ in texts:
        known.update(WORD.findall(text.lower())[:-1])
    begins = {word[:size] for word in known for size in range(1, len(word))}
    bad = []
    for text, row in long:
        end = text.split()[-1].lower()
        if text[-1:].isalpha() and end.isalpha() and end not in known and end in begins:
            bad.append((text[-30:], row))
    if not bad:
        return {}
    return {f"data/mid_word/{column}": len(bad) / len(texts), f"data/said/mid_word/{column}": f"…{quoted(*bad[0])}"}


def in_mid_word(texts: Texts, at: Texts) -> bool:
    """Whether texts end in what is no word anywhere else."""
    known: set[str] = set()
    for text, _ in texts:
        known.update(text.lower().split()[:-1])
    ends = [text.split()[-1].lower() for text, _ in at if text.strip() and text[-1].isalpha()]
    return sum(word.isalpha() and word not in known for word in ends) > 0.25 * len(at)


def scripts(column: str, texts: Texts) -> dict[str, Any]:
    """A few texts in another script than nearly all the others."""
    found = [(signs.script(text), text, row) for text, row in texts]
    counts = Counter(name for name, _, _ in found if name)
    if counts.total() < LEAST or len(counts) < 2:
        return {}
    usual, count = counts.most_common(1)[0]
    others = [(text, row) for name, text, row in found if name and name != usual]
    if count < 0.6 * counts.total():
        return {}
    return {
        f"data/script/{column}": len(others) / counts.total(),
        f"data/script_usual/{column}": usual.capitalize(),
        f"data/said/script/{column}": quoted(*others[0]),
    }


# ---------------------------------------------------------------- signs within texts


def of_signs(rows: list[Seen]) -> dict[str, Any]:
    """Shares of rows with broken characters, by kind, and with HTML."""
    facts: dict[str, Any] = {}
    kinds = {
        "broken/replaced": signs.REPLACED,
        "broken/misread": signs.MISREAD,
        "broken/control": signs.CONTROL,
        "left_over/html": signs.HTML,
    }
    # Rows of tokens were decoded, in which a part of a character is a broken one.
    texts = [(text, row) for row in rows if not is_tokens(row) for text in all_texts(row)]
    for kind, pattern in kinds.items():
        places: dict[str, str] = {}
        for text, row in texts:
            found = pattern.search(text)
            if found and row.where not in places and not (kind == "left_over/html" and "```" in text):
                begin = max(found.start() - 20, 0)
                places[row.where] = signs.excerpt(text[begin : found.end() + 20])
        if places:
            where, said = next(iter(places.items()))
            facts[f"data/{kind}"] = len(places) / len(rows)
            facts[f"data/said/{kind}"] = f"{said} ({where})"
    return facts


def is_tokens(row: Seen) -> bool:
    return any(name.endswith("_ids") for name in row.row)


def all_texts(row: Seen) -> list[str]:
    return [row.prompt or "", *(part.said for part in row.parts)]


def left_overs(rows: list[Seen], known: Callable[[str], bool]) -> dict[str, Any]:
    """Marks of chat templates within texts, and slots that weren't filled. `known`: whether a mark is one of the
    tokenizer or its template: in plain text it is then meant so; in a message the template adds its own."""
    facts: dict[str, Any] = {}
    for kind in ("marks", "foreign_marks", "slots", "turns"):
        bad = [(found, row) for row in rows if (found := _left_over(kind, row, known))]
        if bad and len(rows) >= LEAST:
            facts[f"data/left_over/{kind}"] = len(bad) / len(rows)
            facts[f"data/said/left_over/{kind}"] = quoted(*bad[0])
    return facts


def _left_over(kind: str, row: Seen, known: Callable[[str], bool]) -> str | None:
    if kind == "slots":
        columns = row.row.keys()
        return next((found for text in all_texts(row) if (found := signs.slot(text, columns))), None)
    if kind == "turns":
        found = [signs.TURN.search(part.said) for part in row.parts if part.column != "text"]
        return next((each.group(0).strip() for each in found if each), None)
    talk = is_talk(row)
    if talk == (kind == "foreign_marks"):
        return None
    for text in all_texts(row):
        found = signs.MARK.search(text)
        if found and (talk or not known(found.group(0))):
            return found.group(0)
    return None


def is_talk(row: Seen) -> bool:
    return any(part.talk for part in row.parts) or isinstance(row.row.get("prompt"), list)


def median_words(texts: Texts) -> float:
    return median(len(text.split()) for text, _ in texts) if texts else 0
