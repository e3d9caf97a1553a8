"""Conversations as tokens, and labels on the assistant's turns."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.data.long_texts import ids_of
from ft_host.data.messages import kind_of
from ft_host.data.omissions import check_shown
from ft_host.data.templates import Conversation, has_markers, rendered, template_of, turn_marks
from ft_host.data.tool_calls import from_json, tools_of
from ft_host.data.turn_spans import altered_span, assistant_spans, verify
from ft_host.errors import RowError
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], row: Row, *, continues: bool = False
) -> Conversation:
    return Conversation(tokenizer, messages, tools_of(row), template_arguments(row), continues)


def template_arguments(row: Row) -> dict[str, Any]:
    """Return the row's arguments of the chat template: a mapping, or its JSON. A null was filled in by Arrow."""
    arguments = row.get("chat_template_kwargs") or {}
    if isinstance(arguments, str):
        arguments = from_json(arguments, "column chat_template_kwargs", "chat_template_kwargs")
    if not isinstance(arguments, dict):
        raise RowError(
            f"column chat_template_kwargs: found {kind_of(arguments)}, expected {{name: value}}", "chat_template_kwargs"
        )
    return {name: value for name, value in arguments.items() if value is not None}


def chat_ids(talk: Conversation, *, ask: bool = False) -> list[int]:
    """Return the token ids of a conversation. The template writes BOS, so the tokenizer adds none.

    `ask`: up to where a model answers. Raises RowError for a conversation of which the template leaves something out.
    """
    text = talk.prompt() if ask else talk.whole()
    check_shown(talk, text, ask=ask)
    return encoded(talk, text)


def encoded(talk: Conversation, text: str) -> list[int]:
    return ids_of(talk.tokenizer, text, False)


def with_offsets(talk: Conversation, text: str, what: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids, and the characters [start, stop) of each. Raises RowError, with `what` needs them."""
    if not talk.tokenizer.is_fast:
        raise RowError(
            f"{what} needs a fast tokenizer, which maps tokens to positions in the text; "
            f"{type(talk.tokenizer).__name__} isn't one"
        )
    encoding = talk.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoding["input_ids"], encoding["offset_mapping"]


class Places:
    """Which tokens are in a part of the text, found by bisection: offsets ascend."""

    def __init__(self, offsets: list[tuple[int, int]]):
        self.starts, self.stops = [start for start, _ in offsets], [stop for _, stop in offsets]

    def within(self, start: int, stop: int) -> slice:
        return slice(bisect.bisect_right(self.stops, start), bisect.bisect_left(self.starts, stop))


# ---------------------------------------------------------------- what is trained on


def weighted_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Return token ids of a conversation and labels on all of them, but for messages with weight 0."""
    if all(message.get("weight") != 0 for message in talk.messages):
        ids = chat_ids(talk)
        return ids, list(ids)
    text = talk.whole()
    check_shown(talk, text)
    ids, offsets = with_offsets(talk, text, "a message that isn't trained on")
    return ids, without_weightless(talk, text, Places(offsets), list(ids))


def without_weightless(
    talk: Conversation, text: str, places: Places, labels: list[int], *, marked: bool = False
) -> list[int]:
    """Take the labels off messages with weight 0: turns of the assistant with their end, the content of others.

    `marked`: only the template's marks have labels. What is marked around a turn, up to other turns, is part of it.
    """
    silent = [index for index, message in enumerate(talk.messages) if message.get("weight") == 0]
    turns = {span.index: places.within(span.start, span.stop) for span in assistant_spans(talk, text)}
    for index in silent:
        if talk.messages[index]["role"] == "assistant":
            chosen = turns.get(index, slice(0, 0))
        else:
            chosen = places.within(*(altered_span(talk, text, index) or (0, 0)))
        start, stop = chosen.start, chosen.stop
        if marked and start < stop:
            low = max((other.stop for other in turns.values() if other.stop <= start), default=0)
            high = min((other.start for other in turns.values() if other.start >= stop), default=len(labels))
            while start > low and labels[start - 1] != IGNORE:
                start -= 1
            while stop < high and labels[stop] != IGNORE:
                stop += 1
        labels[start:stop] = [IGNORE] * max(stop - start, 0)
    return labels


def assistant_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Return token ids of a conversation, and labels on the assistant's turns, each with the token that ends it.

    A turn with weight 0 has none.
    """
    if has_markers(talk):
        return marked_tokens(talk)
    text = talk.whole()
    check_shown(talk, text)
    ids, offsets = with_offsets(talk, text, "assistant_only_loss")
    places, labels = Places(offsets), [IGNORE] * len(ids)
    for span in assistant_spans(talk, text):
        chosen = places.within(span.start, span.stop)
        if chosen.start >= chosen.stop:
            raise RowError(f"messages[{span.index}]: no token belongs to this assistant turn; is its content empty?")
        if talk.messages[span.index].get("weight") != 0:
            labels[chosen] = ids[chosen]
        if talk.tokenizer.unk_token_id not in ids[chosen]:  # decoding loses unknown characters
            verify(talk, text, span, talk.tokenizer.decode(ids[chosen], clean_up_tokenization_spaces=False))
    return ids, labels


def marked_tokens(talk: Conversation) -> tuple[list[int], list[int]]:
    """Return the same, from the template's own generation marks.

    Where they leave out the token that ends a turn it is added: a model that never sees it supervised doesn't learn to
    stop.
    """
    text = talk.render(talk.messages)
    check_shown(talk, text)
    encoding = rendered(talk, talk.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["assistant_masks"]
    if not any(mask) and any(message["role"] == "assistant" for message in talk.messages):
        raise RowError("the chat template has {% generation %} marks, but none around the assistant turns of this row")
    close = turn_marks(talk.tokenizer, template_of(talk))[1]
    ending = talk.tokenizer(close, add_special_tokens=False)["input_ids"] if close else []
    if ending:
        for stop in [index + 1 for index in range(len(ids)) if mask[index] and not any(mask[index + 1 : index + 2])]:
            extend(ids, mask, stop, ending, talk.tokenizer)
    labels = [token if chosen else IGNORE for token, chosen in zip(ids, mask, strict=True)]
    if all(message.get("weight") != 0 for message in talk.messages):
        return ids, labels
    own, offsets = with_offsets(talk, text, "a message that isn't trained on")
    if own != ids:
        raise RowError("a message isn't trained on, and the chat template's marks don't tell which tokens it has")
    return ids, without_weightless(talk, text, Places(offsets), labels, marked=True)


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
