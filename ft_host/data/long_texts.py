"""Texts so long that tokenising them takes seconds: tokenised once, though a row is prepared several times before its
step, and named while it goes on.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONG = 1_000_000  # characters

logger = logging.getLogger(__name__)
named: set[str] = set()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Return token ids, with special tokens or without. A list of the caller's own."""
    is_long = isinstance(text, str) and len(text) > LONG  # what is no text is the tokenizer's to refuse
    return list(_kept(tokenizer, text, special)) if is_long else _tokenized(tokenizer, text, special)


def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    return tokenizer(
        text, add_special_tokens=special, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


@functools.lru_cache(maxsize=1)  # the text before alone: its ids take a multiple of its memory
def _kept(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    logger.warning("a text of %s characters is being tokenised, which takes a while", f"{len(text):,}")
    return _tokenized(tokenizer, text, special)


def longest(value: Any) -> int:
    """Return the characters of the longest text in a row."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((longest(each) for each in inner if isinstance(each, (str, dict, list))), default=0)


def name_long(where: str, row: dict[str, Any]) -> None:
    """Name a row with a text that takes seconds, once."""
    size = longest(row)
    if size > LONG and where not in named:
        named.add(where)
        logger.warning(
            "%s: a text of %s characters, which is tokenised whole before it is cut; split it, or leave it out",
            where,
            f"{size:,}",
        )
