"""The formats of rows: detects them, and maps some of them to others.

Every row becomes one of

    {"input_ids", "labels" | "completion_mask" | "assistant_masks"}     tokens already
    {"prompt", "completion"}                                            both texts, or both lists of messages
    {"messages"}                                                        a conversation
    {"text"}                                                            plain text

and keeps `tools` and `chat_template_kwargs` where the row has them. Alpaca and ShareGPT rows are mapped.
"""

from __future__ import annotations

from typing import Any

from ft_host.data.format_errors import refusal, use_methods
from ft_host.data.messages import content_of as content_of
from ft_host.data.messages import is_texts, kind_of, messages_of, text_of
from ft_host.data.padding import without_padding
from ft_host.data.prefill import apart
from ft_host.data.tool_calls import tools_of as tools_of
from ft_host.errors import RowError
from ft_host.types import Row

Message = dict[str, Any]

# `separate_turns` is the host's own: the prompt was cut off a conversation, so that an assistant message at its end is
# a whole turn and not the beginning of the completion.
EXTRAS = ("tools", "chat_template_kwargs", "separate_turns")
MASKS = ("labels", "completion_mask", "assistant_masks")

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
    extras = extras_of(row)
    if row.get("input_ids") is not None:
        return without_padding({name: row[name] for name in ("input_ids", *MASKS) if row.get(name) is not None}, row)
    pairs = row.get("prompt") is not None and row.get("completion") is not None
    talks = [name for name in ("messages", "conversations") if row.get(name) is not None]
    if text_field != "text" and row.get(text_field) is not None and not pairs:
        return {"text": text_of(row[text_field], text_field)}  # named by the user
    if pairs:
        found = extras | pair(row)
        check_one_format(found["prompt"], found["completion"], row, talks)
        return found
    if len(talks) == 2 and messages_of(row[talks[0]], talks[0]) != messages_of(row[talks[1]], talks[1]):
        raise RowError(two_formats("messages", "conversations"), "conversations")
    if row.get("conversations") is not None and row.get("messages") is None:
        return extras | {"messages": with_system(row, messages_of(row["conversations"], "conversations"))}
    if talks:
        return extras | {"messages": messages_of(row["messages"], "messages")}
    alpacas = row.get("instruction") is not None and row.get("output") is not None
    if text_field in row and not (row[text_field] is None and alpacas):
        return {"text": text_of(row[text_field], text_field)}
    if "instruction" in row and "output" in row:
        return (extras if chat else {}) | alpaca(row, chat)
    for name in ("prompt", "completion"):
        if "prompt" in row and "completion" in row and row[name] is None:
            text_of(None, name)
    for name in ("messages", "conversations"):
        if name in row:
            messages_of(None, name)
    raise RowError(refusal(row, text_field))


def extras_of(row: Row) -> Row:
    return {name: row[name] for name in EXTRAS if row.get(name) is not None}


def check_one_format(prompt: Any, completion: Any, row: Row, talks: list[str]) -> None:
    """Refuse a row whose conversation is another than its prompt and completion: which of them is meant can't be
    told.
    """
    for name in talks:
        if not isinstance(prompt, list) or messages_of(row[name], name) != prompt + completion:
            raise RowError(two_formats("prompt and completion", name), name)


def two_formats(one: str, other: str) -> str:
    return (
        f"the row has {one}, and {other} beside it, which isn't the same; expected one of them: set dataset_columns to "
        f"{{{other}: unused}}, or give {one} other names"
    )


def prompt_part(row: Row, *, chat: bool) -> Row:
    """Return the prompt part of a row: {"prompt"} and extras, or {"input_ids", ...} as they are.

    Of messages, all before the last assistant turn. Raises RowError for a row without a prompt.
    """
    other = any(row.get(name) is not None for name in ("input_ids", "messages", "conversations"))
    if row.get("input_ids") is None and ("prompt" in row and not (row["prompt"] is None and other)):
        prompt = row["prompt"]
        prompt = messages_of(prompt, "prompt") if isinstance(prompt, list) else text_of(prompt, "prompt")
        return {"prompt": prompt} | extras_of(row)
    parts = standard(row, chat=chat)
    if "messages" in parts:
        turns = [index for index, message in enumerate(parts["messages"]) if message["role"] == "assistant"]
        parts["prompt"] = parts.pop("messages")[: turns[-1] if turns else None]
        parts |= apart(parts["prompt"])
        if not parts["prompt"]:
            raise RowError("the conversation begins with the assistant: there is no prompt to generate from")
    if "text" in parts:
        raise RowError(
            "plain text has no prompt to generate from; evaluation by generation needs rows with a prompt or messages"
        )
    return parts


# ---------------------------------------------------------------- columns


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
    for name in columns:
        if is_texts(row[name]):
            text_of(row[name], name)
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


def with_system(row: Row, messages: list[Message]) -> list[Message]:
    """Prepend the system prompt that ShareGPT rows may have in a separate column."""
    if not system_of(row) or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": row["system"]}, *messages]


def system_of(row: Row) -> str:
    return "" if row.get("system") is None else text_of(row["system"], "system")


def alpaca(row: Row, chat: bool) -> Row:
    """Return instruction, input and output as prompt and completion, with `system` and `history` where a
    row has them.
    """
    instruction = text_of(row["instruction"], "instruction")
    context = "" if row.get("input") is None else text_of(row["input"], "input")
    output = text_of(row["output"], "output")
    system, history = system_of(row), history_of(row.get("history"))
    if not chat:
        for name, value in (("system", system), ("history", history)):
            if value:
                raise RowError(f"column {name}: needs a chat template, which the tokenizer lacks", name)
        form = ALPACA_INPUT if context else ALPACA
        return {"prompt": form.format(instruction=instruction, input=context), "completion": output}
    question = f"{instruction}\n\n{context}" if context else instruction
    before = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*before, *history, {"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": output}],
    }


def history_of(value: Any) -> list[Message]:
    """Return Alpaca's history, pairs of what was asked and answered, as messages."""
    if value is None or value == "":  # a CSV file has no null
        return []
    if not isinstance(value, list):
        raise RowError(f"column history: found {kind_of(value)}, expected a list of [question, answer]", "history")
    messages = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(
                f"history[{index}]: found {kind_of(pair)}, expected [question, answer], both texts", "history"
            )
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages
