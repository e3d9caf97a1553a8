"""Messages of a conversation: their roles, their content, and what a row says about training on them."""

from __future__ import annotations

import json
from typing import Any

from ft_host.data.tool_calls import checked_calls, from_json
from ft_host.errors import RowError
from ft_host.util.text import nearest

Message = dict[str, Any]

# The names of roles in ShareGPT and its relatives.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
# Those that chat templates don't know, so that `messages` may be mapped too; a template may know the others itself.
FOREIGN = ("human", "gpt", "chatgpt", "bot", "ai", "model")
USUAL = ("user", "assistant", "system", "tool", "developer")

# The types of what a content may consist of.
PARTS = ("text", "image", "image_url", "audio", "input_audio", "video", "file")

# Fields of a message that say whether it is trained on: of OpenAI, axolotl, verl, ms-swift and torchtune (`masked`).
TRAINED = {"weight": True, "train": True, "training": True, "loss_mask": True, "loss": True, "masked": False}


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def text_of(value: Any, column: str) -> str:
    if is_texts(value):
        raise RowError(f"column {column}: found a list of texts, expected one text; write a row for each", column)
    if not isinstance(value, str):
        raise RowError(f"column {column}: found {kind_of(value)}, expected text", column)
    return value


def kind_of(value: Any) -> str:
    """What a message says was found in a row: "nothing", or the type and the beginning of the value."""
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def messages_of(value: Any, column: str) -> list[Message]:
    """Return a conversation as messages with role and content.

    `messages` and `conversations` may be JSON text, as in a CSV file. from/value (ShareGPT) is mapped, and so are its
    names of roles. A message that isn't trained on has `weight` 0. Raises RowError that names the message and what was
    found in it.
    """
    if isinstance(value, str) and column in ("messages", "conversations") and value.lstrip().startswith("["):
        value = from_json(value, f"column {column}", column)
    if not isinstance(value, list) or not value:
        raise RowError(f"column {column}: found {kind_of(value)}, expected a list of {{role, content}}", column)
    if is_texts(value):
        text_of(value, column)
    messages: list[Message] = []
    named: dict[str, str] = {}
    for index, given in enumerate(value):
        where = f"{column}[{index}]"
        if not isinstance(given, dict):
            raise RowError(f"{where}: found {kind_of(given)}, expected {{role, content}}", column)
        message = {name: content for name, content in given.items() if content is not None}
        if "from" in message and "role" not in message:
            message = from_sharegpt(message, given, where, column)
        elif not isinstance(message.get("role"), str):
            near = nearest("role", message, "; {} may be meant as role")
            raise RowError(f"{where}: has no role{near}; its keys are {keys_of(given)}", column)
        else:
            name = message["role"]
            message["role"] = usual_role(name)
            other = named.setdefault(message["role"], name)
            if other != name:
                raise RowError(
                    f"{where}: the roles {other} and {name} in one conversation both stand for {message['role']}; "
                    "expected one name for each role",
                    column,
                )
        if "function_call" in message and "tool_calls" not in message:  # of OpenAI, before tool_calls
            message["tool_calls"] = [{"type": "function", "function": message.pop("function_call")}]
        if message.get("tool_calls"):
            message["tool_calls"] = checked_calls(message["tool_calls"], f"{where}.tool_calls", column)
        check_content(message, given, where, column)
        messages.append(with_weight(message, where, column))
    return messages


def keys_of(given: Message) -> str:
    return ", ".join(name if value is not None else f"{name} (null)" for name, value in given.items())


def usual_role(name: str) -> str:
    """Return the role that chat templates know: `User` and `human` are `user`. Other names stay as they are."""
    plain = name.strip().lower()
    return plain if plain in USUAL else ROLES[plain] if plain in FOREIGN else name


def from_sharegpt(message: Message, given: Message, where: str, column: str) -> Message:
    """Return a message of from/value with role and content."""
    name = message.pop("from")
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        near = nearest(name, ROLES) if isinstance(name, str) else ""
        raise RowError(f"{where}: from: found {name!r}{near}; known are {', '.join(ROLES)}", column)
    text = message.pop("value", message.get("content"))
    if text is None and not (message.get("tool_calls") or message.get("function_call")):
        raise RowError(f"{where}: has no value; its keys are {keys_of(given)}", column)
    return {"role": role, **({} if text is None else {"content": text}), **message}


def check_content(message: Message, given: Message, where: str, column: str) -> None:
    content = message.get("content")
    if message["role"] == "tool" and is_data(content):
        return
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else kind_of(part)
                raise RowError(f"{where}: a part of its content is {kind!r}; only text is supported yet", column)
    elif content is None:
        if not message.get("tool_calls"):
            raise RowError(f"{where}: has neither content nor tool_calls; its keys are {keys_of(given)}", column)
    elif not isinstance(content, str):
        raise RowError(f"{where}: content: found {kind_of(content)}, expected text", column)


def is_data(content: Any) -> bool:
    """Return whether a content is the result of a tool as data: a mapping, or a list of something else than parts."""
    parts = isinstance(content, list) and all(isinstance(part, dict) and part.get("type") in PARTS for part in content)
    return isinstance(content, (dict, list)) and not parts


def content_of(message: Message) -> str:
    """Return the text of a message; of a tool's result that is data, its JSON."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return json.dumps(content, ensure_ascii=False) if is_data(content) else "".join(part["text"] for part in content)


# ---------------------------------------------------------------- what is trained on


def with_weight(message: Message, where: str, column: str) -> Message:
    """Return the message with `weight` 0 where one of its fields says that it isn't trained on, and without these
    fields otherwise.
    """
    said: dict[str, bool] = {}
    for name, sense in TRAINED.items():
        if name not in message:
            continue
        value = message.pop(name)
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise RowError(
                f"{where}: {name}: found {kind_of(value)}, expected 0 or 1, false or true: a message is trained on or "
                "it isn't",
                column,
            )
        said[name] = bool(value) == sense
    if len(set(said.values())) > 1:
        raise RowError(f"{where}: {' and '.join(said)} contradict each other", column)
    return {**message, "weight": 0} if False in said.values() else message


def check_unweighted(completion: Any, column: str) -> None:
    """Refuse an assistant message with weight 0 where a loss compares completions as wholes."""
    for message in completion if isinstance(completion, list) else []:
        if message.get("weight") == 0 and message["role"] == "assistant":
            raise RowError(
                f"column {column}: a message of the assistant ({content_of(message)[:40]!r}) isn't to be trained on, "
                "which supervised fine-tuning honours; this method compares completions as wholes. Leave the field "
                "out, or move the message into the prompt",
                column,
            )
