"""Rows of methods that sample completions: a prompt as tokens and the columns for rewards; and the
completion of a row.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ft_host.batch import IGNORE, count_targets
from ft_host.data.chat_tokens import template_arguments
from ft_host.data.formats import standard
from ft_host.data.prefill import apart
from ft_host.data.tokens import prompt_of, tokenize_row
from ft_host.errors import RowError
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config.rollout import RolloutConfig


def prompt_row(row: Row, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig) -> Row | Drop:
    """Return a row for a rollout: `prompt_ids`, `prompt` as in the row (text or messages), and all of the row's
    `columns`.

    A prompt over `max_length` tokens is dropped: truncated, it would be another question. So is one without a token,
    which nothing can complete. Raises RowError for a row without a prompt.
    """
    arguments = config.chat_template_kwargs | template_arguments(row)
    ids, prompt = prompt_of(row | {"chat_template_kwargs": arguments} if arguments else row, tokenizer, config)
    if config.max_length is not None and len(ids) > config.max_length:
        return Drop("the prompt is longer than max_length")
    if not ids:
        return Drop("the prompt is empty")
    return {"prompt_ids": ids, "prompt": prompt, "columns": row, "length": len(ids)}


def completed_row(row: Row, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, otherwise: str) -> Row | Drop:
    """Return the completion of a row in any format of SFT, as `ft_host.rollouts.rows.completion_row` returns a sampled
    one.

    Of messages it is the last assistant turn. It is truncated at `max_completion_length`. Raises RowError for a row
    without a completion; `otherwise` ends the message with what the method can do without one.
    """
    parts = with_completion(row, tokenizer, otherwise)
    arguments = config.chat_template_kwargs | template_arguments(row)
    whole = dataclasses.replace(config, max_length=None)
    more = {"chat_template_kwargs": arguments} if arguments and "input_ids" not in parts else {}
    tokens = tokenize_row(parts | more, tokenizer, whole, completion_only=True, assistant_only=False)
    ids, labels = tokens["input_ids"], tokens["labels"]
    if not count_targets(labels):
        return Drop("no supervised token")
    begin = next(index for index, label in enumerate(labels) if label != IGNORE)
    if not begin:
        raise RowError("the prompt is empty; expected a prompt before the completion", "prompt")
    end = begin + config.max_completion_length
    return row_from_tokens(ids[:begin], ids[begin:end], [label != IGNORE for label in labels[begin:end]])


def with_completion(row: Row, tokenizer: PreTrainedTokenizerBase, otherwise: str) -> Row:
    """Return a raw row as a row with prompt and completion."""
    if "prompt" in row and row.get("completion") is None and row.get("input_ids") is None:
        raise RowError(f"a prompt without a completion; {otherwise}", "completion")
    parts = standard(row, chat=bool(tokenizer.chat_template))
    if "messages" not in parts:
        return parts
    messages = parts.pop("messages")
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise RowError("messages: found no assistant turn; expected one as the completion", "messages")
    prompt = messages[: turns[-1]]
    return parts | {"prompt": prompt, "completion": [messages[turns[-1]]]} | apart(prompt)


def row_from_tokens(prompt_ids: list[int], completion_ids: list[int], sampled: list[bool]) -> Row:
    """Return the row of a completion that was not sampled here, with labels on the tokens that count."""
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "sampled": sampled,
        "sampling_logps": [0.0] * sum(sampled),
        "length": len(prompt_ids) + len(completion_ids),
        "shared": len(prompt_ids),
    }
