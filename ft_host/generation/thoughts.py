"""Thoughts that a prompt has opened: templates of reasoning models end a prompt with <think>, so that a completion
begins within thoughts and has only their end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "<think>", "</think>"
TAIL = 64  # tokens in which the last tag of a prompt is looked for
LAST = re.compile(r"(<[A-Za-z][\w:.-]*>|\[[A-Z][A-Z_]*\])\s*\Z")
OF_THOUGHTS = re.compile(r"think|thought|reason|scratch|reflect|analysis", re.IGNORECASE)


def opened_by(prompt_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tag that a prompt ends with, <think> or another one, with the space behind it; "" where it ends
    otherwise."""
    tail = tokenizer.decode(prompt_ids[-TAIL:], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = LAST.search(tail)
    return found[0] if found else ""


def tags_of(opened: str) -> tuple[str, str]:
    """Return what begins thoughts and what ends them: the tag that the prompt has opened, where it is one of thoughts,
    otherwise <think>."""
    tag = opened.strip()
    if not OF_THOUGHTS.search(tag):
        return OPENING, CLOSING
    return tag, tag[0] + "/" + tag[1:]


def begins_within(opened: str) -> bool:
    """Whether a completion begins within thoughts that its prompt has opened."""
    return bool(OF_THOUGHTS.search(opened))


def without_thoughts(text: str, opened: str = "") -> str:
    """Return a completion without its thoughts, those included that `opened` by the prompt began; "" where thoughts
    never end."""
    opening, closing = tags_of(opened)
    first = text.find(closing)
    if first >= 0 and opening not in text[:first]:  # the prompt has opened them, whatever its tag
        text = text[first + len(closing) :]
    elif begins_within(opened) and first < 0:
        return ""
    text = re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", "", text, flags=re.DOTALL)
    return text.partition(opening)[0].strip()
