"""Whether a chat template shows a message of a row: the row is rendered with other content in that message.

Only what makes no difference to the text is left out, so that a template may change what it shows.
"""

from __future__ import annotations

import json
from typing import Any

from ft_host.data.messages import content_of, is_data
from ft_host.data.templates import THOUGHTS, Conversation, extended
from ft_host.errors import RowError

Message = dict[str, Any]

WORD = "zq{}x{}w"  # a placeholder, which no template changes but in its case


def parts_of(message: Message) -> tuple[list[str], str]:
    """Return the thoughts of a message, and what it says."""
    thoughts = [message[name] for name in THOUGHTS if isinstance(message.get(name), str) and message[name].strip()]
    said = content_of(message)
    if message["role"] == "assistant":
        thought, ended, reply = said.rpartition("</think>")
        if ended:
            said = reply
            thought = thought.strip().removeprefix("<think>")
            thoughts += [thought] if thought.strip() else []
    return thoughts, said


def rendering(talk: Conversation, messages: list[Message], ask: bool) -> str:
    return talk.render(messages, ask=ask and not talk.continues)


def inner_of(call: Any) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else {}
    return inner if isinstance(inner, dict) else {}


def arguments_of(inner: dict[str, Any]) -> dict[str, Any]:
    given = inner.get("arguments")
    data = json.loads(given) if isinstance(given, str) else given  # checked when the row was read
    return data if isinstance(data, dict) else {}


def changed(call: Any, inner: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """Return a call with these arguments, as text where it has them as text."""
    as_text = isinstance(inner.get("arguments"), str)
    inner = {**inner, "arguments": json.dumps(arguments) if as_text else arguments}
    return {**call, "function": inner} if "function" in call else inner


def lost_content(message: Message, index: int) -> str:
    what = "this assistant turn" if message["role"] == "assistant" else f"this message of {message['role']}"
    other = ", or put its text into the first message of user" if message["role"] == "system" else ""
    return (
        f"messages[{index}]: the chat template leaves {what} out, or a part of it ({content_of(message)[:60]!r}); set "
        f"chat_template_path to a template that shows it{other}"
    )


def is_lost(talk: Conversation, index: int, ask: bool) -> bool:
    """Return whether text before or behind a content isn't shown: the template cuts it, or leaves it out."""
    message = talk.messages[index]
    if is_data(message.get("content")):
        other = {**message, "content": [WORD.format(0, 0)]}
        marks = [WORD.format(0, 0)]
    else:
        marks = [WORD.format("a", index), WORD.format("b", index)]
        thought, ended, _ = content_of(message).rpartition("</think>")
        if ended and message["role"] == "assistant":
            other = {**message, "content": f"{thought}{ended}{marks[0]}{content_of(message)[len(thought + ended) :]}"}
            other["content"] += marks[1]
        else:
            other = extended(message, *marks)
    try:
        made = rendering(talk, [*talk.messages[:index], other, *talk.messages[index + 1 :]], ask).lower()
    except RowError:  # the template depends on this content
        return False
    return not all(mark in made for mark in marks)


def is_cut_inside(talk: Conversation, index: int, text: str, ask: bool) -> bool:
    """Return whether a content is shown without something in it, such as thoughts between other marks than <think>: a
    word behind one of the first words that are missing isn't shown.
    """
    message = talk.messages[index]
    said = parts_of(message)[1]
    if not isinstance(message.get("content"), str):
        return False
    mark = WORD.format("d", index)
    for word in [word for word in said.split() if word not in text][:3]:
        at = message["content"].rindex(said) + said.index(word) + len(word)
        other = {**message, "content": f"{message['content'][:at]} {mark} {message['content'][at:]}"}
        try:
            made = rendering(talk, [*talk.messages[:index], other, *talk.messages[index + 1 :]], ask)
        except RowError:  # the template depends on this content
            continue
        if mark not in made.lower():
            return True
    return False


def lost_call(talk: Conversation, index: int, ask: bool) -> str | None:
    """Return the problem where a call, or an argument of one, isn't shown."""
    message = talk.messages[index]
    mark = WORD.format("c", index)

    def with_calls(calls: list[Any]) -> str | None:
        other = {**message, "tool_calls": calls} if calls else {**message, "tool_calls": None}
        try:
            return rendering(talk, [*talk.messages[:index], other, *talk.messages[index + 1 :]], ask).lower()
        except RowError:  # the template depends on these calls
            return None

    def shows(number: int, other: Any) -> bool:
        made = with_calls([*message["tool_calls"][:number], other, *message["tool_calls"][number + 1 :]])
        return made is None or mark in made

    for number, call in enumerate(message["tool_calls"]):
        inner = inner_of(call)
        data = arguments_of(inner)
        lacking = [name for name in data if not shows(number, changed(call, inner, {**data, name: mark}))]
        if data and not lacking:
            continue
        named = shows(number, changed(call, {**inner, "name": mark}, data))
        if named and not lacking:
            continue
        if not data:  # a template that looks functions up shows no other name
            others = [*message["tool_calls"][:number], *message["tool_calls"][number + 1 :]]
            if with_calls(others) != with_calls(message["tool_calls"]):
                continue
        what = f"the argument {lacking[0]} of the call" if named or 0 < len(lacking) < len(data) else "the call"
        return (
            f"messages[{index}]: the assistant calls {inner.get('name')}, but the chat template leaves {what} out; set "
            "chat_template_path to a template that shows calls of tools"
        )
    return None
