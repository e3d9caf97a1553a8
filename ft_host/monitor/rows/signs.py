"""What can be seen of a single text: that it says nothing, that its characters are broken, what was left in it."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

# What programs write for an absent value. The first are never an answer; the others may be labels.
NEVER = ("nan", "undefined", "[object object]", "[deleted]", "[removed]", "#n/a", "#value!", "#ref!", "<na>")
MAYBE = ("none", "null", "n/a", "nil", "tbd", "todo")

REPLACED = re.compile("\ufffd")
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
# UTF-8 that was read as Windows-1252 or Latin-1: é as Ã©, ’ as â€™, п as Ð¿.
_HIGH = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122"
MISREAD = re.compile(f"Ã[{_HIGH}]|Â[\u00a0-\u00bf]|â€[{_HIGH}]|â\u0080[\u0080-\u00bf]|(?:[ÐÑ][{_HIGH}]){{3}}|ï»¿")
HTML = re.compile(
    r"</?(?:p|br|div|span|a|li|ul|ol|b|i|strong|em|h[1-6]|table|tr|td|img|font|center)\b[^<>]{0,200}>"
    r"|&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-f]{2,4});",
    re.IGNORECASE,
)
# Control tokens of chat templates.
MARK = re.compile(
    r"<\|[a-z_0-9]{2,24}\|>|\[/?INST\]|<</?SYS>>|</?s>(?=\s|$)|<(?:start|end)_of_turn>|<｜[^<>｜]{2,30}｜>",
    re.IGNORECASE,
)
# Where the next turn of a conversation begins, in a text that should end before it.
TURN = re.compile(
    r"\n\s*(?:#{2,3} ?(?:instruction|input|question|human|user)\b|(?:user|human|question|q) ?:)", re.IGNORECASE
)
# A slot of a template that was never filled: {question}, {{ question }}, ${question}.
SLOT = re.compile(r"\{\{?\s*([A-Za-z_][A-Za-z_0-9]{0,30})\s*\}?\}")
SLOTS = set(
    "question prompt instruction input query problem context answer response completion user_input user_message "
    "user_prompt system_prompt few_shot_examples".split()
)
LOOP = 0.1  # what a text that repeats itself is compressed to
LOOP_LEAST = 200  # characters


def is_blank(value: Any, marks: Iterable[str] = ()) -> bool:
    """Whether a value says nothing: none, NaN, white space, or only the special tokens `marks`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, list | dict):
        return not value
    if not isinstance(value, str):
        return False
    text = value.strip()
    if text and text[0] in "<[":
        for mark in marks:
            text = text.replace(mark, "")
    return not text.strip()


def void(text: str) -> str | None:
    """The word for an absent value that a text consists of."""
    word = text.strip().lower() if len(text) < 24 else ""
    return word if word in NEVER or word in MAYBE else None


def loops(text: str) -> bool:
    """Whether a text says one thing again and again."""
    return len(text) >= LOOP_LEAST and len(zlib.compress(text.encode("utf-8", "replace"))) < LOOP * len(text)


def slot(text: str, columns: Iterable[str]) -> str | None:
    """The first slot in a text that was left unfilled: one with the name of a column, or a usual one."""
    if "{" not in text:
        return None
    names = SLOTS | set(columns)
    return next((found.group(0) for found in SLOT.finditer(text) if found.group(1).lower() in names), None)


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").split(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name


def script(text: str) -> str | None:
    """The script that most letters of a text are in; None for few letters, or several scripts alike."""
    letters = Counter(_script(sign) for sign in text[:400] if sign.isalpha())
    if letters.total() < 8:
        return None
    name, count = letters.most_common(1)[0]
    return name if count > 0.6 * letters.total() else None


def excerpt(value: Any) -> str:
    """A value in a message: the beginning of its text, on one line."""
    if not isinstance(value, str):
        return "nothing" if value is None else str(value)[:60]
    line = " ".join(value.split())
    return repr(line if len(line) <= 60 else f"{line[:57]}…") if line else repr(value[:20])


# ---------------------------------------------------------------- final answers

FINAL = re.compile(r"####\s*(.+?)\s*$|\\boxed\{([^{}]+)\}\s*\.?\$?\s*$")
LONGEST = 60  # characters of a final answer


def final(value: Any) -> str | None:
    """A final answer in a form that can be compared: what follows ####, or stands in \\boxed; without signs that people
    leave out. None for what is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or is_blank(value):
        return None
    text = str(value).strip()
    found = FINAL.search(text)
    if found:
        text = found.group(1) or found.group(2)
    text = _bare(text)
    return text if 0 < len(text) <= LONGEST and "\n" not in text else None


def _bare(text: str) -> str:
    return text.strip().lower().replace(",", "").replace("$", "").rstrip(". \n")


def ends_with(text: str, answer: str) -> bool:
    """Whether a text ends with an answer of `final`, as a word of its own."""
    found = FINAL.search(text.strip())
    if found:
        return _bare(found.group(1) or found.group(2)) == answer
    tail = _bare(text[-200:])
    before = tail[: -len(answer)]
    return tail.endswith(answer) and not (before and (before[-1].isalnum() or before[-1] in ".-_"))
