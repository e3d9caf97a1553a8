"""From a raw row to token ids and labels, and from an evaluation row to a prompt. Only this module tokenizes.

The semantics are those of TRL's SFT, so that the same row gives the same tokens: plain text and standard completions
end in EOS, a completion begins where the tokens of the prompt and of prompt + completion diverge, and conversations go
through the chat template. In addition, BOS and EOS are not doubled, and the assistant's turns are found without
generation marks (`templates`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.data.formats import kind_of, prompt_part, standard, tools_of
from ft_host.data.templates import Conversation, assistant_spans, has_markers, rendered, template_of, turn_marks, verify
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
        if assistant_only:
            ids, labels = assistant_tokens(talk)
        else:
            ids = chat_ids(talk)
            labels = list(ids)
    truncated = config.max_length is not None and len(ids) > config.max_length
    if truncated and not (config.packing and config.packing_strategy != "bfd"):
        kept = slice(config.max_length) if config.truncation_mode == "keep_start" else slice(-config.max_length, None)
        ids, labels = ids[kept], labels[kept]
    return {"input_ids": ids, "labels": labels, "length": len(ids), "truncated": truncated}


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
        return chat_ids(conversation(tokenizer, prompt, parts), ask=True), prompt
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
    ids = tokenizer(text, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos and not text.startswith(tokenizer.bos_token * 2):
        del ids[0]
    if len(ids) > 1 and eos is not None and ids[-1] == ids[-2] == eos and not text.endswith(tokenizer.eos_token * 2):
        del ids[-1]
    return ids


# ---------------------------------------------------------------- conversations


def conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Message], row: Row) -> Conversation:
    arguments = row.get("chat_template_kwargs") or {}
    if not isinstance(arguments, dict):
        raise RowError("column chat_template_kwargs: expected {name: value}", "chat_template_kwargs")
    kept = {name: value for name, value in arguments.items() if value is not None}  # None: filled in by Arrow
    return Conversation(tokenizer, messages, tools_of(row), kept)


def chat_ids(talk: Conversation, *, ask: bool = False) -> list[int]:
    """Return the token ids of a conversation. The template writes BOS, so the tokenizer adds none."""
    text = talk.render(talk.messages, ask=ask)
    return talk.tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def assistant_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Return token ids of a conversation, and labels on the assistant's turns, each with the token that ends it."""
    if not talk.tokenizer.is_fast:
        raise RowError(
            "assistant_only_loss needs a fast tokenizer, which maps tokens to positions in the text; "
            f"{type(talk.tokenizer).__name__} isn't one"
        )
    if has_markers(talk):
        return marked_tokens(talk)
    text = talk.render(talk.messages)
    encoding = talk.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    labels = [IGNORE] * len(ids)
    for span in assistant_spans(talk, text):
        inside = [index for index, (start, stop) in enumerate(offsets) if stop > span.start and start < span.stop]
        if not inside:
            raise RowError(f"messages[{span.index}]: no token belongs to this assistant turn; is its content empty?")
        chosen = slice(inside[0], inside[-1] + 1)
        labels[chosen] = ids[chosen]
        if talk.tokenizer.unk_token_id not in ids[chosen]:  # decoding loses unknown characters
            verify(talk, text, span, talk.tokenizer.decode(ids[chosen], clean_up_tokenization_spaces=False))
    return ids, labels


def marked_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Return the same, from the template's own generation marks.

    Where they leave out the token that ends a turn it is added: a model that never sees it supervised doesn't learn to
    stop.
    """
    encoding = rendered(talk, talk.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    if not any(mask) and any(message["role"] == "assistant" for message in talk.messages):
        raise RowError("the chat template has {% generation %} marks, but none around the assistant turns of this row")
    close = turn_marks(talk.tokenizer, template_of(talk))[1]
    ending = talk.tokenizer(close, add_special_tokens=False)["input_ids"] if close else []
    if ending:
        for stop in [index + 1 for index in range(len(ids)) if mask[index] and not any(mask[index + 1 : index + 2])]:
            extend(ids, mask, stop, ending, talk.tokenizer)
    return ids, [token if chosen else IGNORE for token, chosen in zip(ids, mask, strict=True)]


def extend(ids: list[int], mask: list[int], stop: int, ending: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokens of `ending` to a run of the mask that stops at `stop`, if they follow it (ignoring blanks) and it
    lacks them.
    """
    at = stop
    while at > 0 and not tokenizer.decode([ids[at - 1]]).strip():
        at -= 1
    if ids[max(at - len(ending), 0) : at] == ending:
        return
    at = stop
    while at < len(ids) and not tokenizer.decode([ids[at]]).strip():
        at += 1
    if ids[at : at + len(ending)] == ending:
        mask[stop : at + len(ending)] = [1] * (at + len(ending) - stop)


# ---------------------------------------------------------------- prompt and completion


def prompt_and_completion(
    row: Row, tokenizer: PreTrainedTokenizerBase, completion_only: bool, assistant_only: bool
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a prompt with its completion, both texts or both messages."""
    if isinstance(row["prompt"], list):
        talk = conversation(tokenizer, row["prompt"] + row["completion"], row)
        prompt = chat_ids(conversation(tokenizer, row["prompt"], row), ask=True)
        ids, labels = assistant_tokens(talk) if assistant_only else (chat_ids(talk), None)
        labels = list(ids) if labels is None else labels
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


# ---------------------------------------------------------------- tokens that are given


def given_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, completion_only: bool | None
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of a row that has them. Masks apply where there are no labels."""
    size = len(tokenizer)
    ids = checked_ids(row["input_ids"], "input_ids", size)
    columns = {name: list(row[name]) for name in ("labels", "completion_mask", "assistant_masks") if name in row}
    for name, values in columns.items():
        if len(values) != len(ids):
            raise RowError(f"column {name}: {len(values)} values for {len(ids)} input_ids", name)
    labels = columns.get("labels")
    if labels is None:
        masks = [columns["assistant_masks"]] if "assistant_masks" in columns else []
        if completion_only is not False and "completion_mask" in columns:
            masks.append(columns["completion_mask"])
        labels = [token if all(mask[index] for mask in masks) else IGNORE for index, token in enumerate(ids)]
    wrong = [index for index, label in enumerate(labels) if label != IGNORE and label != ids[index]]
    for index in wrong:
        if not isinstance(labels[index], int) or not 0 <= labels[index] < size:
            raise RowError(f"labels[{index}]: found {labels[index]!r}, expected a token id or -100", "labels")
    if len(wrong) > 1 and all(labels[index] == ids[index + 1] for index in wrong if index + 1 < len(ids)):
        raise RowError(
            "column labels: found labels shifted by one token; expected labels aligned with input_ids, "
            "-100 where a token isn't supervised",
            "labels",
        )
    return ids, labels


def checked_ids(values: Any, column: str, size: int) -> list[int]:
    """Return a column of token ids, each below `size`. Raises RowError that names the position of an invalid one."""
    if not isinstance(values, list):
        raise RowError(f"column {column}: found {kind_of(values)}, expected a list of token ids", column)
    for index, token in enumerate(values):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            raise RowError(f"{column}[{index}]: found {token!r}, expected a token id from 0 to {size - 1}", column)
    return list(values)
