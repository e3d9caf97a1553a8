"""What a chat template leaves out of a row, whatever the method: content, calls of tools, thoughts, tools, names.

What is looked for are placeholders: the conversation is rendered once more with a word of its own in the place of each
content, argument and thought, and a word that isn't in the text is one that the template leaves out. That depends on
the form of a conversation alone (roles, which fields, how many calls), so it is rendered once for each form. Beside it
each content of the row itself is looked for in its text, since templates may cut. Where either finds something missing,
that message alone is rendered with other content, and only then is the row refused.

A row without a content or a call isn't what it says: it is refused. Thoughts, tools, names and what is said beside a
call are left out on purpose by some published templates (thoughts of earlier turns): they are counted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from ft_host.data.differences import (
    WORD,
    arguments_of,
    changed,
    inner_of,
    is_cut_inside,
    is_lost,
    lost_call,
    lost_content,
    parts_of,
    rendering,
)
from ft_host.data.messages import content_of, is_data
from ft_host.data.templates import THOUGHTS, Conversation, template_of
from ft_host.errors import RowError

Message = dict[str, Any]

# What is counted. A finding says it, with what to do.
KINDS = {
    "thoughts": "thoughts of the assistant",
    "tools": "the tools",
    "names": "names of those who speak",
    "beside": "what the assistant says beside a call of a tool",
    "parts": "parts of what others than the assistant say",
}
SEEN_MOST = 4096  # forms that are remembered

_noted: ContextVar[set[str] | None] = ContextVar("noted", default=None)
_seen: dict[Any, set[tuple[str, int]] | None] = {}


@contextlib.contextmanager
def noting() -> Iterator[set[str]]:
    """Give the set into which go the KINDS that templates leave out meanwhile."""
    kinds: set[str] = set()
    token = _noted.set(kinds)
    try:
        yield kinds
    finally:
        _noted.reset(token)


def check_shown(talk: Conversation, text: str, *, ask: bool = False) -> None:
    """Refuse a conversation whose `text` lacks a content or a call, with RowError; note thoughts, tools and names.

    `ask`: the text ends where a model answers.
    """
    missing = set(of_form(talk, ask) or ())
    look = Text(text)
    for index, message in enumerate(talk.messages):
        thoughts, said = parts_of(message)
        if not is_data(message.get("content")) and not look.has(said.strip()):
            missing.add(("said", index))
        if ("thoughts", index) in missing and all(thought.strip() in text for thought in thoughts):
            missing.discard(("thoughts", index))  # the form of one row said so, this row shows them
    kinds = set()
    for kind, index in sorted(missing, key=lambda part: (part[1], part[0])):
        if kind in KINDS:
            kinds.add(kind)
        elif kind == "said":
            message = talk.messages[index]
            if is_lost(talk, index, ask):
                if not message.get("tool_calls"):
                    raise RowError(lost_content(message, index))
                kinds.add("beside")
            elif is_cut_inside(talk, index, text, ask):
                kinds.add("thoughts" if message["role"] == "assistant" else "parts")
        elif kind == "call":
            problem = lost_call(talk, index, ask)
            if problem:
                raise RowError(problem)
    noted = _noted.get()
    if noted is not None:
        noted |= kinds


class Text:
    """A rendered text, in which contents are looked for as they are, as JSON, and without blanks."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0  # contents mostly stand in the order of messages
        self.squeezed: str | None = None

    def has(self, said: str) -> bool:
        found = self.text.find(said, self.at)
        if found >= 0:
            self.at = found + len(said)
            return True
        if said in self.text or json.dumps(said, ensure_ascii=False)[1:-1] in self.text:
            return True
        if self.squeezed is None:
            self.squeezed = "".join(self.text.split())
        return "".join(said.split()) in self.squeezed


# ---------------------------------------------------------------- by form


def of_form(talk: Conversation, ask: bool) -> set[tuple[str, int]] | None:
    """Return what the template leaves out of a conversation of this form; None where it refuses the placeholders."""
    shape = tuple(map(form_of, talk.messages))
    arguments = json.dumps(talk.arguments, sort_keys=True, default=str)
    key = (template_of(talk), arguments, bool(talk.tools), ask, talk.continues, shape)
    if key not in _seen:
        if len(_seen) >= SEEN_MOST:
            _seen.clear()
        _seen[key] = left_out(talk, ask)
    return _seen[key]


def form_of(message: Message) -> tuple[Any, ...]:
    thoughts, said = parts_of(message)
    content = message.get("content")
    calls = tuple(
        (isinstance(inner.get("arguments"), str), *arguments_of(inner))
        for inner in map(inner_of, message.get("tool_calls") or [])
    )
    kind = type(content).__name__ if is_data(content) else isinstance(content, list)
    return message["role"], tuple(sorted(message)), bool(said.strip()), len(thoughts), kind, calls


def left_out(talk: Conversation, ask: bool) -> set[tuple[str, int]] | None:
    for named in (True, False):  # some templates look calls up among the tools by their names
        words: list[tuple[str, int, str]] = []
        messages = [with_words(message, index, words, named) for index, message in enumerate(talk.messages)]
        try:
            text = rendering(talk, messages, ask)
            break
        except RowError:
            continue
    else:
        return None
    low = text.lower()
    missing = {(kind, index) for kind, index, word in words if word not in low}
    if talk.tools and without_tools(talk, messages, ask) == text:
        missing.add(("tools", -1))
    return missing


def without_tools(talk: Conversation, messages: list[Message], ask: bool) -> str | None:
    bare = Conversation(talk.tokenizer, messages, None, talk.arguments, talk.continues)
    try:
        return rendering(bare, messages, ask)
    except RowError:  # it shows calls with tools only
        return None


def with_words(message: Message, index: int, words: list[tuple[str, int, str]], named: bool) -> Message:
    """Return the message with words in place of all that it says, and add those to `words`.

    `named`: also in place of the names of what it calls.
    """

    def word(kind: str) -> str:
        made = WORD.format(index, len(words))
        words.append((kind, index, made))
        return made

    out = dict(message)
    thoughts, said = parts_of(message)
    if thoughts:
        thought = word("thoughts")
        for name in THOUGHTS:
            if isinstance(message.get(name), str) and message[name].strip():
                out[name] = thought
    content = message.get("content")
    if is_data(content):
        if content:
            out["content"] = {"result": word("said")} if isinstance(content, dict) else [word("said")]
    elif content_of(message).strip():
        made = word("said") if said.strip() else ""
        before, ended, _ = content_of(message).rpartition("</think>")
        if ended and message["role"] == "assistant":
            opened = "<think>\n" if "<think>" in before else ""
            inside = thought if before.strip().removeprefix("<think>").strip() else ""
            made = f"{opened}{inside}\n</think>\n\n{made}"
        out["content"] = [{"type": "text", "text": made}] if isinstance(content, list) else made
    if message.get("tool_calls"):
        out["tool_calls"] = [with_call(call, word, named) for call in message["tool_calls"]]
    if message["role"] in ("user", "assistant", "system") and isinstance(message.get("name"), str):
        out["name"] = word("names")
    return out


def with_call(call: Any, word: Callable[[str], str], named: bool) -> Any:
    """Return a call with words in place of its arguments' values, and of its name."""
    inner = inner_of(call)
    if "name" not in inner:
        return call
    data = arguments_of(inner)
    made = inner | ({"name": word("call")} if named else {})
    return changed(call, made, {name: word("call") for name in data})
