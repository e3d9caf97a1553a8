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
from ft_host.data.turn_spans import assistant_spans
from ft_host.errors import ConfigError, RowError
from ft_host.generation import Completion
from ft_host.rollouts.parsing import read_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

USER = {"role": "user", "content": "a"}
ARGUMENTS = {"a": "a"}


def between(chat: templates.Conversation, ids: list[int], results: list[Message]) -> list[int]:
    """Return the tokens from the end of a turn that called tools to the beginning of the next one: the end of turn if
    `ids` lacks it, the results of the tools, and the generation prompt."""
    calls = tuple((message["name"], message["tool_call_id"]) for message in results)
    seam = turn_boundary_of(chat.tokenizer, json.dumps(chat.tools), json.dumps(chat.arguments), calls)
    text = chat.render([USER, calling(calls[: seam.shown]), *results], ask=True)
    if not text.startswith(seam.head):
        raise ConfigError(
            "the chat template renders a turn with tool calls differently before tool results: "
            f"expected {seam.head[-80:]!r}, found {text[: len(seam.head)][-80:]!r}"
        )
    close = encoded(chat.tokenizer, seam.close)
    # includes the end of turn, since some tokenizers encode the beginning of a text differently
    encoded_ids = encoded(chat.tokenizer, seam.close + text[len(seam.head) :])
    if encoded_ids[: len(close)] != close:
        raise ConfigError(
            f"the tokens of {seam.close!r}, which ends a turn of the chat template, aren't always the same"
        )
    return encoded_ids[len(close) :] if ids[-len(close) :] == close else encoded_ids


@dataclass(frozen=True)
class TurnBoundary:
    """The position in the text of our conversation at which a turn that calls tools ends."""

    start: int  # of the turn
    head: str  # all text up to its end
    close: str  # the token that ends it
    shown: int  # calls in it: 1 where the template allows no more


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
            spans = assistant_spans(chat, text)
        except RowError as error:  # some templates take one call per turn
            problem = problem or error
            continue
        tail = text[spans[0].last : spans[0].stop]
        pattern = templates.specials(tokenizer)
        close = [found.group() for found in pattern.finditer(tail) if found.end() == len(tail)] if pattern else []
        if not close:
            raise ConfigError(
                "tools: the chat template ends a turn with tool calls without a special token, so the end of a model's "
                f"turn can't be detected; it ends in {text[: spans[0].stop][-40:]!r}"
            )
        head = text[: spans[0].stop]
        return TurnBoundary(begun(chat, head, spans[0].start), head, close[0], shown)
    raise ConfigError(f"tools: the chat template can't render tool calls: {problem}") from problem


def begun(chat: templates.Conversation, head: str, found: int) -> int:
    """Return where the turn at the end of `head` begins; `found`: where its own text begins."""
    prompt = chat.render([USER], ask=True)
    if head.startswith(prompt):
        return len(prompt)
    # the generation prompt has more text, such as closed thoughts
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
    other = "set chat_template_path to one that does"
    chat = templates.Conversation(tokenizer, [USER], tools, arguments)
    bare = templates.Conversation(tokenizer, [USER], None, arguments)
    if chat.render([USER], ask=True) == bare.render([USER], ask=True):
        raise ConfigError(f"tools: the chat template doesn't show the tools to the model; {other}")
    name = tools[0]["function"]["name"]
    example = ((name, "call00000"),)
    seam = turn_boundary_of(tokenizer, json.dumps(tools), json.dumps(arguments), example)
    result = {"role": "tool", "name": name, "tool_call_id": "call00000", "content": templates.OTHER}
    if templates.OTHER not in chat.render([USER, calling(example), result]):
        raise ConfigError(f"tools: the chat template doesn't show tool results to the model; {other}")
    turn = Completion(token_ids=encoded(tokenizer, seam.head[seam.start :]), finish_reason="stop")
    _, calls = read_turn(turn, encoded(tokenizer, seam.head[: seam.start]), tokenizer, tools, first=0)
    if [(call.name, call.arguments, call.problem) for call in calls] != [(name, ARGUMENTS, "")]:
        raise ConfigError(
            f"tools: the chat template writes a call as {seam.head[seam.start :]!r}, which can't be read; expected "
            '<tool_call>{"name": …, "arguments": …}</tool_call>, or a response_template in tokenizer_config.json'
        )
