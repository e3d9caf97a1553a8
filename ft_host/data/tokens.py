"""From a raw row to token ids and labels, and from an evaluation row to a prompt. Only this module tokenizes.

The semantics are those of TRL's SFT, so that the same row gives the same tokens: plain text and standard completions
end in EOS, a completion begins where the tokens of the prompt and of prompt + completion diverge, and conversations go
through the chat template. In addition, BOS and EOS are not doubled, and the assistant's turns are found without
generation marks (`templates`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE, count_targets
from ft_host.data.chat_tokens import assistant_tokens, chat_ids, conversation, weighted_tokens
from ft_host.data.formats import prompt_part, standard
from ft_host.data.given_tokens import given_tokens
from ft_host.data.long_texts import ids_of
from ft_host.data.prefill import begins_answer, continues, whole_talks
from ft_host.errors import ConfigError, RowError
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Message = dict[str, Any]

logger = logging.getLogger(__name__)


def tokenize_row(
    row: Row,
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    *,
    completion_only: bool | None,
    assistant_only: bool,
    text_field: str = "text",
) -> Row:
    """Return a raw row, in any usual format, as {"input_ids", "labels", "length", "truncated"}.

    `labels` are aligned with `input_ids`, -100 where a token isn't supervised. `completion_only`: supervise only the
    completion; None: where there is one. `assistant_only`: supervise only the assistant's turns of conversations.
    Truncated to `max_length` at the end that `truncation_mode` sets; rows stay whole where packing cuts them.

    Raises RowError that says what was found and what was expected.
    """
    parts = standard(row, chat=bool(tokenizer.chat_template), text_field=text_field)
    if text_field in row and row[text_field] is not None and not {"text", "input_ids"} & parts.keys():
        warn_text(text_field, " and ".join(name for name in ("messages", "prompt", "completion") if name in parts))
    if "input_ids" in parts:
        ids, labels = given_tokens(parts, tokenizer, completion_only)
    elif "text" in parts:
        if assistant_only:
            raise RowError("assistant_only_loss needs conversations; the row is plain text", text_field)
        if completion_only:
            raise RowError("completion_only_loss needs a prompt and a completion; the row is plain text", text_field)
        ids = encode(tokenizer, with_eos(parts["text"], tokenizer))
        labels = list(ids)
    elif "completion" in parts:
        ids, labels = prompt_and_completion(parts, tokenizer, completion_only is not False, assistant_only)
    else:
        if completion_only:
            raise RowError("completion_only_loss needs a prompt and a completion; the row has messages", "messages")
        talk = conversation(tokenizer, parts["messages"], parts)
        ids, labels = assistant_tokens(talk) if assistant_only else weighted_tokens(talk)
    whole = labels
    truncated = config.max_length is not None and len(ids) > config.max_length
    if truncated and not (config.packing and config.packing_strategy != "bfd"):
        kept = slice(config.max_length) if config.truncation_mode == "keep_start" else slice(-config.max_length, None)
        ids, labels = ids[kept], labels[kept]
    out = {"input_ids": ids, "labels": labels, "length": len(ids), "truncated": truncated}
    return out if count_targets(labels) else out | {"unsupervised": why_unsupervised(parts, whole, assistant_only)}


def why_unsupervised(parts: Row, labels: list[int], assistant_only: bool) -> str:
    """Return what a message adds on a row without a supervised token; `labels`: before the cut."""
    if count_targets(labels):
        return " within max_length"
    messages = parts.get("messages") or parts.get("completion") or []
    if not assistant_only or isinstance(messages, str):
        return ""
    roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
    if all(message["role"] != "assistant" for message in messages):
        return f": assistant_only_loss supervises messages of assistant, and the roles are {roles}"
    return ""


def prompt_of(row: Row, tokenizer: PreTrainedTokenizerBase, config: RunConfig) -> tuple[list[int], str | list[Message]]:
    """Return the prompt of an evaluation row: token ids, and the prompt as in the row (text or messages).

    The ids are those of a training row: of messages, all before the last assistant turn, with the generation prompt.
    Raises RowError for a row without a prompt.
    """
    parts = prompt_part(row, chat=bool(tokenizer.chat_template))
    if "input_ids" in parts:
        ids, labels = given_tokens(parts, tokenizer, None)
        first = next((index for index, label in enumerate(labels) if label != IGNORE), 0)
        if not first:
            raise RowError("input_ids: all tokens are supervised, so there is no prompt to generate from")
        return ids[:first], tokenizer.decode(ids[:first])
    prompt = parts["prompt"]
    if isinstance(prompt, list):
        talk = conversation(tokenizer, prompt, parts, continues=begins_answer(prompt, parts))
        return chat_ids(talk, ask=True), prompt
    ids = encode(tokenizer, prompt)
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids.pop()  # added by a tokenizer that ends every text
    return ids, prompt


# ---------------------------------------------------------------- text


def with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise ConfigError("eos_token: the tokenizer has none, so texts would have no end; set eos_token")
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return token ids with special tokens, but with a single BOS and EOS where the text already has them."""
    ids = ids_of(tokenizer, text, True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos and not text.startswith(tokenizer.bos_token * 2):
        del ids[0]
    if len(ids) > 1 and eos is not None and ids[-1] == ids[-2] == eos and not text.endswith(tokenizer.eos_token * 2):
        del ids[-1]
    return ids


# ---------------------------------------------------------------- prompt and completion


def prompt_and_completion(
    row: Row, tokenizer: PreTrainedTokenizerBase, completion_only: bool, assistant_only: bool
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a prompt with its completion, both texts or both messages."""
    if isinstance(row["prompt"], list):
        completions = [row["completion"]]
        talk = conversation(tokenizer, whole_talks(row["prompt"], completions, row)[0], row)
        begun = continues(row["prompt"], completions, row)
        prompt = chat_ids(conversation(tokenizer, row["prompt"], row, continues=begun), ask=True)
        ids, labels = assistant_tokens(talk) if assistant_only else weighted_tokens(talk)
    else:
        if assistant_only:
            raise RowError("assistant_only_loss needs conversations; prompt and completion are texts", "completion")
        prompt = encode(tokenizer, row["prompt"])
        ids = encode(tokenizer, row["prompt"] + with_eos(row["completion"], tokenizer))
        labels = list(ids)
    if completion_only:
        boundary = shared(prompt, ids)
        if boundary < len(prompt) and not ends_in_eos_only(prompt[boundary:], tokenizer):
            warn_boundary(tokenizer.decode(prompt[boundary:]))
        labels[:boundary] = [IGNORE] * boundary
    return ids, labels


def shared(a: list[Any], b: list[Any]) -> int:
    """Return how many tokens (or messages) two rows share at their start."""
    for index, (one, other) in enumerate(zip(a, b)):
        if one != other:
            return index
    return min(len(a), len(b))


def ends_in_eos_only(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return all(token == tokenizer.eos_token_id for token in ids)


_warned: set[str] = set()
_beside: set[str] = set()


def warn_text(column: str, used: str) -> None:
    """Warn once per process that rows have a text beside what they are trained on."""
    if column not in _beside:
        _beside.add(column)
        logger.warning(
            "rows have the column %s beside others: %s are trained on, and the text isn't. To train on the text, give "
            "the others names of no format with dataset_columns",
            column,
            used,
        )


def warn_boundary(lost: str) -> None:
    """Warn once per process that prompts tokenize differently alone."""
    if not _warned:
        _warned.add(lost)
        logger.warning(
            "a prompt has other tokens alone than before its completion (they differ from %r on): the completion "
            "is supervised from there, and generation starts from other tokens than training saw. End prompts "
            "at the end of a token, or use a chat template that renders a prompt the same way in both cases",
            lost,
        )
