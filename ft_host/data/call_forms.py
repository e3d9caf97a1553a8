"""The forms in which a chat template takes arguments of calls, results of tools, and contents.

OpenAI's API gives arguments as JSON text. A template that encodes them would encode them twice, and one that adds
them to text can't take a mapping. Contents are texts or lists of parts: some templates show only one of the two.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from ft_host.data.messages import content_of, is_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

CALL_ID, CALLED = "call00000", "zqname"  # Mistral's template wants nine characters
KEY, VALUE = "zqkey", "zqvalue"
TOOL = {
    "type": "function",
    "function": {
        "name": CALLED,
        "description": "a",
        "parameters": {"type": "object", "properties": {"zqother": {"type": "string", "description": "a"}}},
    },
}


def call_with(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": CALL_ID, "function": {"name": CALLED, "arguments": arguments}}


@functools.lru_cache(maxsize=64)
def forms(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Return in which form the template takes arguments of calls, and results of tools that are data: "mapping",
    "text", or "any". It is the form that gives plain JSON, neither encoded twice nor Python's.
    """
    data = {KEY: VALUE}
    text = json.dumps(data)

    def good(arguments: Any, result: Any, shown: str) -> bool:
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call_with(arguments)]},
            {"role": "tool", "tool_call_id": CALL_ID, "name": CALLED, "content": result},
        ]
        try:
            made = tokenizer.apply_chat_template(messages, tools=[TOOL], chat_template=template, tokenize=False)
        except Exception:  # this form, or the small conversation, isn't one that the template takes
            return False
        made = made.replace(shown, "", 1) if shown else made
        return VALUE in made and not any(f"{quote}{KEY}" in made for quote in ("{'", '\\"'))

    both = {(True, False): "mapping", (False, True): "text"}
    arguments = both.get((good(data, "a", ""), good(text, "a", "")), "any")
    call = {"zqother": "a"} if arguments != "text" else '{"zqother": "a"}'
    return arguments, both.get((good(call, data, ""), good(call, text, "")), "any")


@functools.lru_cache(maxsize=64)
def content_form(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """Return in which form the template shows contents: "text", "parts", or "any"."""

    def good(content: Any) -> bool:
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        try:
            made = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        except Exception:  # this form, or the small conversation, isn't one that the template takes
            return False
        return made.count(VALUE) == 2 and "'type'" not in made and '"type"' not in made

    return {(True, False): "text", (False, True): "parts"}.get(
        (good(VALUE), good([{"type": "text", "text": VALUE}])), "any"
    )


def fitted(messages: list[Message], tokenizer: PreTrainedTokenizerBase, template: str) -> list[Message]:
    """Return messages with contents, calls and results of tools in the form that the template takes."""
    form = content_form(tokenizer, template)
    messages = [in_form(message, form) for message in messages]
    if not any(message.get("tool_calls") or is_data(message.get("content")) for message in messages):
        return messages
    arguments, results = forms(tokenizer, template)
    return [fitted_message(message, arguments, results) for message in messages]


def in_form(message: Message, form: str) -> Message:
    content = message.get("content")
    if form == "parts" and isinstance(content, str) and content:
        return {**message, "content": [{"type": "text", "text": content}]}
    if form == "text" and isinstance(content, list) and not is_data(content):
        return {**message, "content": content_of(message)}
    return message


def fitted_message(message: Message, arguments: str, results: str) -> Message:
    out = dict(message)
    if is_data(message.get("content")) and results != "mapping":
        out["content"] = json.dumps(message["content"], ensure_ascii=False)
    if message.get("tool_calls"):
        out["tool_calls"] = [fitted_call(call, arguments) for call in message["tool_calls"]]
    return out


def fitted_call(call: Any, form: str) -> Any:
    inner = call.get("function", call)
    given = inner.get("arguments") if isinstance(inner, dict) else None
    if form == "mapping" and isinstance(given, str):
        inner = {**inner, "arguments": json.loads(given)}  # checked when the row was read
    elif form == "text" and isinstance(given, dict):
        inner = {**inner, "arguments": json.dumps(given, ensure_ascii=False)}
    else:
        return call
    return {**call, "function": inner} if "function" in call else inner
