"""Rows of methods that make their completions themselves: a prompt as tokens, and the columns that rewards are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.data.tokens import prompt_of
from ft_host.run import Drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.generation.config import RolloutConfig

Row = dict[str, Any]


def prompt_row(row: Row, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig) -> Row | Drop:
    """What a rollout begins with: `prompt_ids`, `prompt` as the row has it (text or messages), and all of the row's
    `columns`. A prompt over `max_length` tokens is left out: cut, it would be another question.

    Raises RowError for a row without a prompt.
    """
    arguments = config.chat_template_kwargs | (row.get("chat_template_kwargs") or {})
    ids, prompt = prompt_of(row | {"chat_template_kwargs": arguments} if arguments else row, tokenizer, config)
    if config.max_length is not None and len(ids) > config.max_length:
        return Drop("the prompt is longer than max_length")
    return {"prompt_ids": ids, "prompt": prompt, "columns": row, "length": len(ids)}
