"""Parses a turn of the model as a message, and the calls of tools in it.

It uses the tokenizer's response template if there is one (transformers 5.13), else the format of Hermes and Qwen:

    <tool_call>
    {"name": "add", "arguments": {"a": 2, "b": 3}}
    </tool_call>

A call that can't be parsed is a call with a problem, which the model gets as its result.
"""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

from ft_host.generation import Completion
from ft_host.generation.thoughts import begins_within, opened_by, tags_of
from ft_host.rollouts.tools import Call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

OPEN, CLOSE = "<tool_call>", "</tool_call>"
BLOCK = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
UNREADABLE = "unknown"  # the name of a call that can't be read
EXPECTED = 'expected {"name": ..., "arguments": {...}}'


def read_turn(
    answer: Completion,
    before: list[int],
    tokenizer: PreTrainedTokenizerBase,
    tools: list[dict[str, Any]],
    *,
    first: int,
) -> tuple[Message, list[Call]]:
    """Return a turn of the model as an assistant message, and its calls, numbered from `first`. `before`: the tokens
    before it. A turn that was cut short is text."""
    if answer.finish_reason == "length":
        return {"role": "assistant", "content": text_of(answer.token_ids, tokenizer)}, []
    # an attribute of tokenizers since transformers 5.13; versions before that don't have it
    if vars(tokenizer).get("response_template") is None:
        message, raw_calls = by_tags(text_of(answer.token_ids, tokenizer), opened_by(before, tokenizer))
    else:
        message, raw_calls = by_template(answer.token_ids, before, tokenizer, tools)
    calls = []
    for number, raw in enumerate(raw_calls, first):
        given_id = raw.get("id") if isinstance(raw, dict) else None
        own = str(given_id) if given_id else f"call{number:05d}"  # Mistral's template requires nine characters
        try:
            name, arguments = checked(raw)
        except ValueError as error:
            calls.append(Call(name=UNREADABLE, id=own, problem=f"this call can't be read: {error}"))
        else:
            calls.append(Call(name=name, id=own, arguments=arguments))
    readable = [call for call in calls if not call.problem]
    if readable:
        message["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in readable
        ]
    return message, calls


def text_of(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a turn without special tokens, but with the tags of calls, which are special in some
    tokenizers."""
    hidden = set(tokenizer.all_special_ids) - set(tokenizer.convert_tokens_to_ids([OPEN, CLOSE]))
    return tokenizer.decode([token for token in ids if token not in hidden], clean_up_tokenization_spaces=False)


def by_tags(text: str, opened: str = "") -> tuple[Message, list[Any]]:
    """Return the message without the calls that are JSON, and what is between the tags: JSON, or text that isn't. A
    call within thoughts isn't made, nor one within those that the prompt has `opened`."""
    opening, closing = tags_of(opened)
    thought, ended, reply = text.rpartition(closing)
    if not ended and (opening in text or begins_within(opened)):
        thought, reply = text, ""
    calls: list[Any] = []

    def take(block: re.Match[str]) -> str:
        try:
            calls.append(json.loads(block[1]))
        except (ValueError, RecursionError) as error:  # a model writes brackets in brackets too
            calls.append(ValueError(str(error)))
            return block[0]
        return ""

    rest = BLOCK.sub(take, reply)
    if BLOCK.sub("", reply).find(OPEN) >= 0:
        calls.append(ValueError(f"{CLOSE} is missing"))
    content = thought + ended + rest
    return {"role": "assistant", "content": content.strip() if calls else content}, calls


def by_template(
    ids: list[int], before: list[int], tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]]
) -> tuple[Message, list[Any]]:
    """Return the message as transformers parses it, and its calls. If it can't, all of it is text and a call that can't
    be parsed."""
    takes_tools = "tools" in inspect.signature(tokenizer.parse_response).parameters  # since transformers 5.15
    try:
        message = tokenizer.parse_response(ids, prefix=before, **({"tools": tools} if takes_tools else {}))
    except (ValueError, TypeError, KeyError) as error:
        return {"role": "assistant", "content": text_of(ids, tokenizer)}, [ValueError(str(error))]
    calls = message.pop("tool_calls", None) or []
    message["content"] = message.get("content") or ""
    if tokenizer.eos_token:
        message["content"] = message["content"].removesuffix(tokenizer.eos_token)
    return {"role": "assistant"} | message, calls if isinstance(calls, list) else [calls]


def checked(call: Any) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a call. Raises ValueError that says what is wrong with it."""
    if isinstance(call, ValueError):
        raise call
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError(EXPECTED)
    arguments = call.get("arguments")
    if isinstance(arguments, str):  # some models write JSON within JSON
        try:
            arguments = json.loads(arguments)
        except RecursionError as error:
            raise ValueError(str(error)) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(EXPECTED)
    return call["name"], arguments
