"""The formats of rows: detects them, and maps some of them to others.

Every row becomes one of

    {"input_ids", "labels" | "completion_mask" | "assistant_masks"}     tokens already
    {"prompt", "completion"}                                            both texts, or both lists of messages
    {"messages"}                                                        a conversation
    {"text"}                                                            plain text

and keeps `tools` and `chat_template_kwargs` where the row has them. Alpaca and ShareGPT rows are mapped.
"""

from __future__ import annotations

import json
from typing import Any

from ft_host.data.format_errors import refusal, use_methods
from ft_host.errors import RowError
from ft_host.types import Row
from ft_host.util.text import nearest

Message = dict[str, Any]

EXTRAS = ("tools", "chat_template_kwargs")

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

# The prompts of Stanford Alpaca's training, for tokenizers without a chat template.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)


def standard(row: Row, *, chat: bool, text_field: str = "text") -> Row:
    """Return a row in one of the four formats above, from any known format.

    `chat`: the tokenizer has a chat template, so Alpaca rows become conversations and not texts. Raises RowError that
    names the columns found and what they look like.
    """
    extras = {name: row[name] for name in EXTRAS if row.get(name) is not None}
    if row.get("input_ids") is not None:
        masks = ("labels", "completion_mask", "assistant_masks")
        return {name: row[name] for name in ("input_ids", *masks) if row.get(name) is not None}
    if "prompt" in row and "completion" in row:
        return extras | pair(row)
    if "messages" in row:
        return extras | {"messages": messages_of(row["messages"], "messages")}
    if "conversations" in row:
        return extras | {"messages": with_system(row, messages_of(row["conversations"], "conversations"))}
    if text_field in row:
        return {"text": text_of(row[text_field], text_field)}
    if "instruction" in row and "output" in row:
        return alpaca(row, chat)
    raise RowError(refusal(row, text_field))


def prompt_part(row: Row, *, chat: bool) -> Row:
    """Return the prompt part of a row: {"prompt"} and extras, or {"input_ids", ...} as they are.

    Of messages, all before the last assistant turn. Raises RowError for a row without a prompt.
    """
    if "prompt" in row and row.get("input_ids") is None:
        prompt = row["prompt"]
        prompt = messages_of(prompt, "prompt") if isinstance(prompt, list) else text_of(prompt, "prompt")
        return {"prompt": prompt} | {name: row[name] for name in EXTRAS if row.get(name) is not None}
    parts = standard(row, chat=chat)
    if "messages" in parts:
        turns = [index for index, message in enumerate(parts["messages"]) if message["role"] == "assistant"]
        parts["prompt"] = parts.pop("messages")[: turns[-1] if turns else None]
        if not parts["prompt"]:
            raise RowError("the conversation begins with the assistant: there is no prompt to generate from")
    if "text" in parts:
        raise RowError(
            "plain text has no prompt to generate from; evaluation by generation needs rows with a prompt or messages"
        )
    return parts


# ---------------------------------------------------------------- columns


def text_of(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"column {column}: found {kind_of(value)}, expected text", column)
    return value


def kind_of(value: Any) -> str:
    """What a message says was found in a row: "nothing", or the type and the beginning of the value."""
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def pair(row: Row) -> Row:
    """Return prompt and completion, both texts or both lists of messages."""
    if isinstance(row.get("label"), bool):
        raise RowError(
            "prompt, completion and a label that is true or false look like unpaired preference data, where some "
            f"completions are bad ones: {use_methods('unpaired preference')}, or keep the good rows and leave the"
            " column out",
            "label",
        )
    return alike(row, ("prompt", "completion"))


def alike(row: Row, columns: tuple[str, ...]) -> Row:
    """Return these columns, all texts or all lists of messages."""
    if any(isinstance(row[name], list) for name in columns):
        for name in columns:
            if not isinstance(row[name], list):
                others = " and ".join(other for other in columns if isinstance(row[other], list))
                raise RowError(
                    f"column {name}: found {kind_of(row[name])}, expected messages, as in the other column ({others})",
                    name,
                )
        return {name: messages_of(row[name], name) for name in columns}
    return {name: text_of(row[name], name) for name in columns}


def messages_of(value: Any, column: str) -> list[Message]:
    """Return a conversation as messages with role and content; from/value (ShareGPT) is mapped."""
    if not isinstance(value, list) or not value:
        raise RowError(f"column {column}: found {kind_of(value)}, expected a list of {{role, content}}", column)
    messages = []
    for index, message in enumerate(value):
        where = f"{column}[{index}]"
        if not isinstance(message, dict):
            raise RowError(f"{where}: found {kind_of(message)}, expected {{role, content}}", column)
        message = {name: content for name, content in message.items() if content is not None}
        if "from" in message and "role" not in message:
            if message["from"] not in ROLES:
                raise RowError(
                    f"{where}: from: found {message['from']!r}{nearest(message['from'], ROLES)}; known are "
                    f"{', '.join(ROLES)}",
                    column,
                )
            mapped = {"role": ROLES[message.pop("from")], "content": message.pop("value", "")}
            message = {**mapped, **message}
        if not isinstance(message.get("role"), str):
            raise RowError(f"{where}: has no role{nearest('role', message)}; its keys are {', '.join(message)}", column)
        check_content(message, where, column)
        messages.append(message)
    return messages


def check_content(message: Message, where: str, column: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else kind_of(part)
                raise RowError(f"{where}: a part of its content is {kind!r}; only text is supported yet", column)
    elif content is None:
        if not message.get("tool_calls"):
            raise RowError(f"{where}: has neither content nor tool_calls; its keys are {', '.join(message)}", column)
    elif not isinstance(content, str):
        raise RowError(f"{where}: content: found {kind_of(content)}, expected text", column)


def content_of(message: Message) -> str:
    """Return the text of a message."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Prepend the system prompt that ShareGPT rows may have in a separate column."""
    if isinstance(row.get("system"), str) and row["system"] and messages[0]["role"] != "system":
        return [{"role": "system", "content": row["system"]}, *messages]
    return messages


def alpaca(row: Row, chat: bool) -> Row:
    """Return instruction, input and output as prompt and completion, with `system` and `history` where a
    row has them.
    """
    instruction = text_of(row["instruction"], "instruction")
    context = text_of(row.get("input") or "", "input")
    output = text_of(row["output"], "output")
    if not chat:
        for name in ("system", "history"):
            if row.get(name):
                raise RowError(f"column {name}: needs a chat template, which the tokenizer lacks", name)
        form = ALPACA_INPUT if context else ALPACA
        return {"prompt": form.format(instruction=instruction, input=context), "completion": output}
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    history = []
    for asked, answered in row.get("history") or []:
        history += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    question = f"{instruction}\n\n{context}" if context else instruction
    return {
        "prompt": [*system, *history, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": output}],
    }


def tools_of(row: Row) -> list[Any] | None:
    """Return the tools of a row: a list, or a list written as JSON. An empty list gives None, since templates take []
    for tools.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except json.JSONDecodeError as error:
            raise RowError(f"column tools: not JSON: {error.msg} at column {error.colno}", "tools") from error
    if tools is not None and not isinstance(tools, list):
        raise RowError(f"column tools: found {kind_of(tools)}, expected a list of functions", "tools")
    return tools or None
