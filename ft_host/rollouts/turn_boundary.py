"""The tokens that a chat template puts between a turn that calls tools and the next one.

They are read off a small conversation of our own, so that no sampled token is ever made anew from text: one rendering
with the results of the tools, cut where the turn that called them ends. Imports no torch.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.data import templates
from ft_host.errors import ConfigError, RowError
from ft_host.generation import Completion
from ft_host.rollouts.parsing import read_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

USER = {"role": "user", "content": "a"}
ARGUMENTS = {"a": "a"}


def between(chat: templates.Conversation, ids: list[int], said: list[Message]) -> list[int]:
    """Return the tokens from the end of a turn that called tools to the beginning of the next one: the end of turn if
    `ids` lacks it, the results of the tools, and the generation prompt."""
    asked = tuple((message["name"], message["tool_call_id"]) for message in said)
    seam = turn_boundary_of(chat.tokenizer, json.dumps(chat.tools), json.dumps(chat.arguments), asked)
    text = chat.render([USER, calling(asked[: seam.shown]), *said], ask=True)
    if not text.startswith(seam.head):
        raise ConfigError(
            "the chat template shows a turn that calls tools in another way before what tools say: "
            f"expected {seam.head[-80:]!r}, found {text[: len(seam.head)][-80:]!r}"
        )
    close = encoded(chat.tokenizer, seam.close)
    # with the end of turn before it, where a tokenizer writes the beginning of a text in a way of its own
    made = encoded(chat.tokenizer, seam.close + text[len(seam.head) :])
    if made[: len(close)] != close:
        raise ConfigError(
            f"the tokens of {seam.close!r}, which ends a turn of the chat template, aren't always the same"
        )
    return made[len(close) :] if ids[-len(close) :] == close else made


@dataclass(frozen=True)
class TurnBoundary:
    """The position in the text of our conversation at which a turn that calls tools ends."""

    start: int  # of the turn
    head: str  # all up to its end
    close: str  # the token that ends it
    shown: int  # calls in it: one where the template takes no more


@functools.lru_cache(maxsize=256)
def turn_boundary_of(
    tokenizer: PreTrainedTokenizerBase, tools: str, arguments: str, asked: tuple[tuple[str, str], ...]
) -> TurnBoundary:
    """Render calls of tools by (name, id) with the chat template. Raises ConfigError if it can't."""
    said = [{"role": "tool", "name": name, "tool_call_id": each, "content": "a"} for name, each in asked]
    problem = None
    for shown in dict.fromkeys((len(asked), 1)):
        messages = [USER, calling(asked[:shown]), *said]
        chat = templates.Conversation(tokenizer, messages, json.loads(tools), json.loads(arguments))
        try:
            text = chat.render(messages)
            spans = templates.assistant_spans(chat, text)
        except RowError as error:  # some take one call a turn
            problem = problem or error
            continue
        tail = text[spans[0].last : spans[0].stop]
        pattern = templates.specials(tokenizer)
        close = [found.group() for found in pattern.finditer(tail) if found.end() == len(tail)] if pattern else []
        if not close:
            raise ConfigError(
                "tools: the chat template ends a turn that calls tools with no special token, so that where a model "
                f"stops can't be told; it ends in {text[: spans[0].stop][-40:]!r}"
            )
        head = text[: spans[0].stop]
        return TurnBoundary(begun(chat, head, spans[0].start), head, close[0], shown)
    raise ConfigError(f"tools: the chat template can't show calls of tools: {problem}") from problem


def begun(chat: templates.Conversation, head: str, found: int) -> int:
    """Return where the turn at the end of `head` begins; `found`: where its own text begins."""
    asked = chat.render([USER], ask=True)
    if head.startswith(asked):
        return len(asked)
    # the generation prompt has something more, such as closed thoughts
    opening = templates.turn_marks(chat.tokenizer, templates.template_of(chat))[0]
    return head.rfind(opening) + len(opening) if opening and opening in head else found


def calling(asked: tuple[tuple[str, str], ...]) -> Message:
    calls = [
        {"type": "function", "id": each, "function": {"name": name, "arguments": ARGUMENTS}} for name, each in asked
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def check_template(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]], arguments: dict[str, Any]) -> None:
    """Refuse a chat template that doesn't show tools or their results, or that writes calls in a form that can't be
    parsed again. Raises ConfigError."""
    if not tokenizer.chat_template:
        raise ConfigError("tools: the tokenizer has no chat template; set chat_template_path")
    other = "give one that does with chat_template_path"
    chat = templates.Conversation(tokenizer, [USER], tools, arguments)
    bare = templates.Conversation(tokenizer, [USER], None, arguments)
    if chat.render([USER], ask=True) == bare.render([USER], ask=True):
        raise ConfigError(f"tools: the chat template doesn't show a model which tools it has; {other}")
    name = tools[0]["function"]["name"]
    asked = ((name, "call00000"),)
    seam = turn_boundary_of(tokenizer, json.dumps(tools), json.dumps(arguments), asked)
    said = {"role": "tool", "name": name, "tool_call_id": "call00000", "content": templates.OTHER}
    if templates.OTHER not in chat.render([USER, calling(asked), said]):
        raise ConfigError(f"tools: the chat template doesn't show a model what tools say; {other}")
    turn = Completion(token_ids=encoded(tokenizer, seam.head[seam.start :]), finish_reason="stop")
    _, calls = read_turn(turn, encoded(tokenizer, seam.head[: seam.start]), tokenizer, tools, first=0)
    if [(call.name, call.arguments, call.problem) for call in calls] != [(name, ARGUMENTS, "")]:
        raise ConfigError(
            f"tools: the chat template writes a call as {seam.head[seam.start :]!r}, which can't be read; expected "
            '<tool_call>{"name": …, "arguments": …}</tool_call>, or a response_template in tokenizer_config.json'
        )
