"""Rows of methods that make their completions themselves: a prompt as tokens, and the columns that rewards are given;
and the completion of a row, where one is used in place of one that is made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE, count_targets
from ft_host.data.formats import standard
from ft_host.data.tokens import prompt_of, tokenize_row
from ft_host.errors import RowError
from ft_host.types import Drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config.rollout import RolloutConfig

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


def completed_row(row: Row, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, otherwise: str) -> Row | Drop:
    """The completion of a row in any format of SFT, of messages the last turn of the assistant's, cut at
    `max_completion_length`: what `ft_host.rollouts.rows.completion_row` makes of one that was sampled.

    Raises RowError for a row without one, which goes on with `otherwise`: what a method can do without.
    """
    found = with_completion(row, tokenizer, otherwise)
    arguments = config.chat_template_kwargs | (row.get("chat_template_kwargs") or {})
    whole = dataclasses.replace(config, max_length=None)
    more = {"chat_template_kwargs": arguments} if arguments and "input_ids" not in found else {}
    tokens = tokenize_row(found | more, tokenizer, whole, completion_only=True, assistant_only=False)
    ids, labels = tokens["input_ids"], tokens["labels"]
    if not count_targets(labels):
        return Drop("no supervised token")
    begin = next(index for index, label in enumerate(labels) if label != IGNORE)
    if not begin:
        raise RowError("the prompt is empty: nothing comes before the completion", "prompt")
    end = begin + config.max_completion_length
    return row_from_tokens(ids[:begin], ids[begin:end], [label != IGNORE for label in labels[begin:end]])


def with_completion(row: Row, tokenizer: PreTrainedTokenizerBase, otherwise: str) -> Row:
    """A raw row as one with a prompt and a completion."""
    if "prompt" in row and row.get("completion") is None and row.get("input_ids") is None:
        raise RowError(f"a prompt without a completion; {otherwise}", "completion")
    found = standard(row, chat=bool(tokenizer.chat_template))
    if "messages" not in found:
        return found
    messages = found.pop("messages")
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise RowError("messages: no turn is the assistant's; expected one that is the completion", "messages")
    return found | {"prompt": messages[: turns[-1]], "completion": [messages[turns[-1]]]}


def row_from_tokens(prompt_ids: list[int], completion_ids: list[int], sampled: list[bool]) -> Row:
    """A completion that nobody sampled here, with the tokens of it that count."""
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "sampled": sampled,
        "sampling_logps": [0.0] * sum(sampled),
        "length": len(prompt_ids) + len(completion_ids),
        "shared": len(prompt_ids),
    }
