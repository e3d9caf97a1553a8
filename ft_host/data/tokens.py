"""From a raw row to token ids and labels, and from an evaluation row to a prompt. The one place that tokenises.

The semantics are those of TRL's SFT, so that the same row gives the same tokens: plain text and standard completions
end in EOS, a completion begins where the tokens of the prompt and of prompt + completion part, conversations are what
the chat template makes of them. Beyond it: no doubled BOS or EOS, and the assistant's turns are found without
generation marks (`templates`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.data.formats import kind_of, prompt_part, standard, tools_of
from ft_host.data.templates import Conversation, assistant_spans, has_markers, rendered, template_of, turn_marks, verify
from ft_host.errors import ConfigError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Row = dict[str, Any]
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
    """A raw row, in any format of the field, as {"input_ids", "labels", "length", "truncated"}.

    `labels` are aligned with `input_ids`, -100 where a token isn't supervised. `completion_only`: supervise the
    completion only; None: where there is one. `assistant_only`: supervise the assistant's turns only, in conversations.
    Cut to `max_length` from the end that `truncation_mode` says; where packing cuts rows itself they stay whole.

    Raises RowError that says what was found and what was expected.
    """
    found = standard(row, chat=bool(tokenizer.chat_template), text_field=text_field)
    if "input_ids" in found:
        ids, labels = given_tokens(found, tokenizer, completion_only)
    elif "text" in found:
        if assistant_only:
            raise RowError("assistant_only_loss needs conversations; the row is plain text", text_field)
        if completion_only:
            raise RowError("completion_only_loss needs a prompt and a completion; the row is plain text", text_field)
        ids = encode(tokenizer, with_eos(found["text"], tokenizer))
        labels = list(ids)
    elif "completion" in found:
        ids, labels = prompt_and_completion(found, tokenizer, completion_only is not False, assistant_only)
    else:
        if completion_only:
            raise RowError("completion_only_loss needs a prompt and a completion; the row has messages", "messages")
        talk = conversation(tokenizer, found["messages"], found)
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
    """What to generate from for an evaluation row: token ids, and the prompt as the row has it (text or messages).

    The ids are those that a training row would have there: of messages, all before the last assistant turn, with the
    generation prompt. Raises RowError for a row without a prompt.
    """
    found = prompt_part(row, chat=bool(tokenizer.chat_template))
    if "input_ids" in found:
        ids, labels = given_tokens(found, tokenizer, None)
        first = next((index for index, label in enumerate(labels) if label != IGNORE), 0)
        if not first:
            raise RowError("input_ids: all tokens are supervised, so that none are a prompt to generate from")
        return ids[:first], tokenizer.decode(ids[:first])
    prompt = found["prompt"]
    if isinstance(prompt, list):
        return chat_ids(conversation(tokenizer, prompt, found), ask=True), prompt
    ids = encode(tokenizer, prompt)
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids.pop()  # put there by a tokenizer that ends every text
    return ids, prompt


# ---------------------------------------------------------------- text


def with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.eos_token:
        raise ConfigError("eos_token: the tokenizer has none, so that a text would have no end; set eos_token")
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids as the tokenizer makes them, special tokens included, but one BOS and one EOS where it adds those to
    a text that has them already."""
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
    given = {name: value for name, value in arguments.items() if value is not None}  # None: filled in by Arrow
    return Conversation(tokenizer, messages, tools_of(row), given)


def chat_ids(talk: Conversation, *, ask: bool = False) -> list[int]:
    """The token ids of a conversation. The template writes BOS where it belongs, so the tokenizer adds none."""
    text = talk.render(talk.messages, ask=ask)
    return talk.tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def assistant_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and labels on the assistant's turns, each with the token that ends it."""
    if not talk.tokenizer.is_fast:
        raise RowError(
            "assistant_only_loss needs a tokenizer that knows where in the text its tokens are (a fast one); "
            f"{type(talk.tokenizer).__name__} doesn't"
        )
    if has_markers(talk):
        return marked_tokens(talk)
    text = talk.render(talk.messages)
    made = talk.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids, offsets = made["input_ids"], made["offset_mapping"]
    labels = [IGNORE] * len(ids)
    for span in assistant_spans(talk, text):
        inside = [index for index, (start, stop) in enumerate(offsets) if stop > span.start and start < span.stop]
        if not inside:
            raise RowError(f"messages[{span.index}]: no token is this assistant turn's; is its content empty?")
        chosen = slice(inside[0], inside[-1] + 1)
        labels[chosen] = ids[chosen]
        if talk.tokenizer.unk_token_id not in ids[chosen]:  # an unknown character doesn't come back
            verify(talk, text, span, talk.tokenizer.decode(ids[chosen], clean_up_tokenization_spaces=False))
    return ids, labels


def marked_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """The same by the template's own generation marks. Where they leave out the token that ends a turn it is added,
    since a model that never sees it supervised doesn't learn to stop."""
    made = rendered(talk, talk.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = made["input_ids"], made["assistant_masks"]
    if not any(mask) and any(message["role"] == "assistant" for message in talk.messages):
        raise RowError("the chat template has {% generation %} marks, but none around this row's assistant turns")
    close = turn_marks(talk.tokenizer, template_of(talk))[1]
    ending = talk.tokenizer(close, add_special_tokens=False)["input_ids"] if close else []
    if ending:
        for stop in [index + 1 for index in range(len(ids)) if mask[index] and not any(mask[index + 1 : index + 2])]:
            extend(ids, mask, stop, ending, talk.tokenizer)
    return ids, [token if chosen else IGNORE for token, chosen in zip(ids, mask, strict=True)]


def extend(ids: list[int], mask: list[int], stop: int, ending: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokens of `ending` to a run of the mask that stops at `stop`, where they follow it, blanks aside, and
    it doesn't have them yet."""
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
    """Token ids and labels of a prompt with its completion, both texts or both messages."""
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
    """Tokens (or messages) that two rows have in common at their start."""
    for index, (one, other) in enumerate(zip(a, b)):
        if one != other:
            return index
    return min(len(a), len(b))


def ends_in_eos_only(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return all(token == tokenizer.eos_token_id for token in ids)


_warned: set[str] = set()


def warn_boundary(lost: str) -> None:
    """Say once per process that prompts look different alone."""
    if not _warned:
        _warned.add(lost)
        logger.warning(
            "the tokens of a prompt alone are not those it has before its completion (they part at %r): the completion "
            "is supervised from there, and generation will start from other tokens than training saw. End prompts "
            "where a token ends, or use a chat template that renders a prompt the same way in both cases",
            lost,
        )


# ---------------------------------------------------------------- tokens that are given


def given_tokens(
    row: Row, tokenizer: PreTrainedTokenizerBase, completion_only: bool | None
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a row that has them. Masks apply where there are no labels."""
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
            "column labels: each is the token after the one in input_ids; expected labels aligned with input_ids, "
            "-100 where a token isn't supervised",
            "labels",
        )
    return ids, labels


def checked_ids(values: Any, column: str, size: int) -> list[int]:
    """A column of token ids, each below `size`. Raises RowError that names the place of one that isn't."""
    if not isinstance(values, list):
        raise RowError(f"column {column}: found {kind_of(values)}, expected a list of token ids", column)
    for index, token in enumerate(values):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < size:
            raise RowError(f"{column}[{index}]: found {token!r}, expected a token id from 0 to {size - 1}", column)
    return list(values)
