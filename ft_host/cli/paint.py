"""Tokens as text for a terminal: those that matter marked, in one piece or in columns side by side."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from ft_host.batch import IGNORE
from ft_host.util.jsonl import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GREEN, GREY = (32, 92), (37, 90)  # of marked tokens and of others, taking turns so that tokens can be told apart
BETWEEN = " │ "

Part = tuple[str, int | None]  # what is seen, and its colour


def painted(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, color: bool) -> str:
    """Tokens as text, those that have a label in green, or in «»."""
    return "".join(in_color(*part) for part in parts(ids, labels, tokenizer, color))


def in_color(text: str, code: int | None) -> str:
    return text if code is None else f"\x1b[{code}m{text}\x1b[0m"


def parts(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, color: bool) -> list[Part]:
    """Tokens as texts with their colours; where there is no colour, with the marks that take its place."""
    out: list[Part] = []
    before = False
    found = pieces(ids, labels, tokenizer)
    for number, (text, marked) in enumerate(found):
        text = visible(text).replace("\n", "⏎\n")
        if number + 1 == len(found):
            text = text.removesuffix("\n")  # ⏎ says it; no empty line
        if color:
            out.append((text, (GREEN if marked else GREY)[number % 2]))
            continue
        mark = "«" if marked and not before else "»" if before and not marked else "|" if number else ""
        out.append((mark + text, None))
        before = marked
    return out + ([("»", None)] if before else [])


def pieces(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """(text, whether it has a label) of each token. Tokens that are parts of one character are taken together."""
    out: list[tuple[str, bool]] = []
    waiting: list[int] = []
    for index, token in enumerate(ids):
        waiting.append(token)
        marked = labels[index] != IGNORE
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        ends = index + 1 == len(ids) or (labels[index + 1] != IGNORE) != marked
        if not text.endswith("\ufffd") or len(waiting) == 4 or ends:
            out.append((text, marked))
            waiting = []
    return out


# ---------------------------------------------------------------- columns


def side_by_side(left: list[Part], right: list[Part], width: int) -> str:
    """Two texts in columns of equal width, `width` cells in all."""
    room = (width - len(BETWEEN)) // 2
    a, b = wrapped(left, room), wrapped(right, room)
    lines = []
    for index in range(max(len(a), len(b))):
        text, used = a[index] if index < len(a) else ("", 0)
        other = b[index][0] if index < len(b) else ""
        lines.append((text + " " * (room - used) + BETWEEN + other).rstrip())
    return "\n".join(lines)


def wrapped(found: list[Part], width: int) -> list[tuple[str, int]]:
    """Lines of at most `width` cells, each with the cells that it takes. Broken wherever a line is full, since the
    blanks of tokens are to be seen."""
    lines: list[tuple[str, int]] = []
    line, used = "", 0
    for text, code in found:
        run = ""
        for character in text.expandtabs(4):
            size = cells(character)
            if character == "\n" or used + size > width:
                lines.append((line + in_color(run, code) if run else line, used))
                line, run, used = "", "", 0
            if character != "\n":
                run, used = run + character, used + size
        if run:
            line += in_color(run, code)
    return lines + ([(line, used)] if line else [])


def cells(character: str) -> int:
    """How many cells of a terminal a character takes: two of a Chinese one, none of a combining accent."""
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
