"""Preference pairs as rows to train on: what methods that learn from pairs share of `ft_prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ft_host.data.completions import fit_length, is_empty, tokenize_completions
from ft_host.data.preferences import PAIR, preference_row
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig


def pair_row(row: Row, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> Row | Drop:
    """A raw row in any format that `preference_row` knows as a pair of tokens, within `max_length`, as
    `ft_host.batch.pair_batch` takes it: `prompt_ids` (which may be empty), `chosen_ids`, `rejected_ids`; `margin` where
    the row has one; and what the host reads: `length`, `truncated`, `cut`, `implicit_prompt`.

    Drop for a completion that is empty, one that has no room, and for two that are the same, before or after cutting:
    nothing tells them apart. Raises RowError for a row that is no pair.
    """
    found = preference_row(row, tokenizer)
    if any(is_empty(found[f"{name}_ids" if "prompt_ids" in found else name]) for name in PAIR):
        return Drop("empty completion")
    prompt, (chosen, rejected) = tokenize_completions(found, tokenizer, PAIR)
    if chosen == rejected:
        return Drop("chosen and rejected are the same")
    fitted = fit_length(prompt, [chosen, rejected], config)
    if isinstance(fitted, Drop):
        return fitted
    prompt, (chosen, rejected), cut = fitted
    if chosen == rejected:
        return Drop("chosen and rejected are the same within max_length")
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        **({"margin": found["margin"]} if "margin" in found else {}),
        "length": len(prompt) + len(chosen) + len(rejected),
        "truncated": bool(cut),
        "cut": {part if part == "prompt" else PAIR[part]: tokens for part, tokens in cut.items()},
        "implicit_prompt": found["implicit_prompt"],
    }
