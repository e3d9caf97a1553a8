"""How the host writes JSON, everywhere: in a run's files, on standard output, to other programs.

What is written is read back the same, by this host and by readers that cut a text at other characters than "\n".
Imports nothing of the host.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from typing import Any

# Characters that a string of JSON may hold as they are, but that others cut a line at (U+0085, U+2028, U+2029), that a
# terminal acts on (U+007F to U+009F, marks of direction), or that UTF-8 can't hold (lone surrogates, which a model's
# bytes and JSON's escapes give). Outside strings JSON has none of them, so that each can be escaped wherever it is.
_ESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
KEYS = (str, int, float, type(None))  # what JSON takes as the key of an object
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def json_text(value: Any, indent: int | None = None, *, words: bool = True) -> str:
    """Return the value as JSON. NaN and infinity, which JSON lacks, become the words of `WORDS` at any depth; without
    `words` they are written as Python writes them, for files that only this host reads. What JSON can't hold at all is
    written as its text: a line that is logged never ends a run."""
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=not words, default=_held)
    except (ValueError, TypeError):  # a number that isn't finite, or a key that is no text: the rare case
        text = json.dumps(finite_or_word(value), indent=indent, ensure_ascii=False, default=_held)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_line(entry: Any) -> str:
    """Return the value as one line of JSON, with its end."""
    return json_text(entry) + "\n"


def finite_or_word(value: Any) -> Any:
    """Replace NaN and infinity by words, at any depth, and keys that JSON can't hold by their text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {key if isinstance(key, KEYS) else str(key): finite_or_word(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_word(item) for item in value]
    return value


def from_words(value: Any) -> Any:
    """Undo of `finite_or_word`, for values in which no text is one of `WORDS`."""
    if isinstance(value, str):
        return WORDS.get(value, value)
    if isinstance(value, dict):
        return {key: from_words(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_words(item) for item in value]
    return value


def _held(value: Any) -> Any:
    """A number of numpy as a number, a set as a list, anything else as its text."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return finite_or_word(float(value))
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return str(value)


# ---------------------------------------------------------------- for a terminal

# Control characters but tab and line feed, marks of direction, and lone surrogates.
_ACTED_ON = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text for a terminal, which acts on none of its characters: an escape is shown as \\x1b."""
    return _ACTED_ON.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
