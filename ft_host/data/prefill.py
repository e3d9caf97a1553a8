"""Prompts that end with the beginning of an answer, which the completion continues, as in TRL and vLLM."""

from __future__ import annotations

from typing import Any

from ft_host.data.messages import content_of

Message = dict[str, Any]


def apart(prompt: Any) -> dict[str, bool]:
    """Return `separate_turns` for a prompt that was cut off a conversation, if it ends with an assistant message: that
    is a whole turn, and not the beginning of an answer.
    """
    cut = isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict) and prompt[-1]["role"] == "assistant"
    return {"separate_turns": True} if cut else {}


def begins_answer(prompt: list[Message], row: dict[str, Any]) -> bool:
    """Return whether a prompt ends with the beginning of an answer: an assistant message, where the row gives prompt
    and completion apart.
    """
    if not prompt or row.get("separate_turns"):
        return False
    last = prompt[-1]
    return last["role"] == "assistant" and bool(content_of(last)) and not last.get("tool_calls")


def joined(prompt: list[Message], completion: list[Message]) -> list[Message]:
    """Return prompt and completion as one conversation, in which the first message of the completion continues the
    last one of the prompt.
    """
    first = completion[0]
    if isinstance(first.get("content"), list):
        content: Any = [{"type": "text", "text": content_of(prompt[-1])}, *first["content"]]
    else:
        content = content_of(prompt[-1]) + (first.get("content") or "")
    return [*prompt[:-1], {**prompt[-1], **first, "content": content}, *completion[1:]]


def whole_talks(prompt: list[Message], completions: list[list[Message]], row: dict[str, Any]) -> list[list[Message]]:
    """Return the prompt with each of its completions as one conversation."""
    if continues(prompt, completions, row):
        return [joined(prompt, completion) for completion in completions]
    return [prompt + completion for completion in completions]


def continues(prompt: list[Message], completions: list[list[Message]], row: dict[str, Any]) -> bool:
    begun = all(completion and completion[0]["role"] == "assistant" for completion in completions)
    return begun and begins_answer(prompt, row)
