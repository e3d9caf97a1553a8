"""Completions that the policy hasn't said, those of the data and of the teacher, as rows to train on."""

from __future__ import annotations

import dataclasses
from typing import Any

from ft_gold.tokens import Vocabulary
from ft_host.batch import IGNORE, count_targets
from ft_host.data import tokenize_row
from ft_host.data.formats import standard
from ft_host.errors import RowError
from ft_host.run import Drop

Row = dict[str, Any]


def with_completion(row: Row, tokenizer: Any) -> Row:
    """A raw row in any format of SFT as one with a prompt and a completion: of messages, the last turn of the assistant.
    Raises RowError for one that has none."""
    if "prompt" in row and row.get("completion") is None and row.get("input_ids") is None:
        raise RowError(
            "a prompt without a completion; with lmbda below 1 gold learns from completions of the data too. Set lmbda to 1, "
            "or seq_kd to let the teacher complete prompts", "completion",
        )  # fmt: skip
    found = standard(row, chat=bool(tokenizer.chat_template))
    if "messages" not in found:
        return found
    messages = found.pop("messages")
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise RowError("messages: no turn is the assistant's; expected one that the teacher looks at", "messages")
    return found | {"prompt": messages[: turns[-1]], "completion": [messages[turns[-1]]]}


def own_row(row: Row, tokenizer: Any, config: Any) -> Row | Drop:
    """The completion of a row of the data, cut at `max_completion_length`."""
    found = with_completion(row, tokenizer)
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
    return given_row(ids[:begin], ids[begin:end], [label != IGNORE for label in labels[begin:end]])


def text_row(row: Row, text: str, end: int | None, ours: Vocabulary, config: Any) -> Row:
    """What a teacher has said to the prompt of `row`, as the student reads it, and the token that ended it."""
    ids = [*ours.encode(text), *([] if end is None else [end])][: config.max_completion_length]
    found = given_row(row["prompt_ids"], ids, [True] * len(ids)) if ids else given_row(row["prompt_ids"], [ours.end], [False])
    return found | {"group": row["group"]}


def given_row(prompt_ids: list[int], completion_ids: list[int], sampled: list[bool]) -> Row:
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "sampled": sampled,
        "sampling_logps": [0.0] * sum(sampled),
        "on_policy": False,
        "length": len(prompt_ids) + len(completion_ids),
        "shared": len(prompt_ids),
    }
