"""The assistant's turns in the rendered text of a conversation.

Most published templates don't mark the assistant's turns, so they are found in the text. A turn *begins* where the
prompt before it, rendered with the generation prompt, ends: that is what a model would be given at that point. It
*ends* after the token that closes it. Its content is found by rendering the conversation again with other content in
its place: the text before and after the content stays the same, even if the template strips or cuts it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ft_host.data.messages import content_of
from ft_host.data.templates import (
    OTHER,
    THOUGHTS,
    Conversation,
    common_prefix,
    common_suffix,
    replaced,
    specials,
    squash,
    template_of,
    turn_marks,
)
from ft_host.errors import RowError

MANY = 6  # turns from which on they are found together
CONTEXT, LEAST = 40, 4  # characters before a turn that are compared


@dataclass(frozen=True)
class Span:
    """An assistant turn in the rendered text: characters [start, stop), with its content at [first, last)."""

    index: int  # of the message
    start: int
    stop: int
    first: int
    last: int


def assistant_spans(talk: Conversation, text: str) -> list[Span]:
    """Return where the assistant's turns are in `text`, the rendered conversation.

    Raises RowError for a turn that the template leaves out.
    """
    opening, close = turn_marks(talk.tokenizer, template_of(talk))
    spans: list[Span] = []
    turns = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
    contents = plain_contents(talk, text) if len(turns) >= MANY else {}
    begins = Begins(talk, text, opening)
    for index in turns:
        found = contents.get(index) or altered_span(talk, text, index)
        if found is None:
            if content_of(talk.messages[index]).strip() or talk.messages[index].get("tool_calls"):
                raise RowError(f"messages[{index}]: the chat template leaves this assistant turn out")
            continue
        first, last = found
        start = begins.of(index, first, spans[-1].stop if spans else 0)
        stop = end(talk, text, index, last, close)
        spans.append(Span(index, start, max(stop, last), first, last))
    return spans


def altered_span(talk: Conversation, text: str, index: int) -> tuple[int, int] | None:
    """Return where the content of a message is in the text: the characters that other content changes. None where it
    changes nothing.
    """
    other = altered(talk, index)
    if other == text:
        return None
    first = common_prefix(text, other)
    return first, max(first, len(text) - common_suffix(text, other))


def altered(talk: Conversation, index: int) -> str:
    """Render the conversation with other content in one message."""
    messages = [*talk.messages[:index], replaced(talk.messages[index]), *talk.messages[index + 1 :]]
    return replace(talk, messages=messages).whole()


# ---------------------------------------------------------------- long conversations


def plain_contents(talk: Conversation, text: str) -> dict[int, tuple[int, int]]:
    """Return where the contents of all turns are that say something and nothing else, from one rendering.

    That rendering has other content in all of them. What is between gives the text with the row's own contents, or
    nothing is returned.
    """
    plain = {index for index, message in enumerate(talk.messages) if is_plain(message)}
    messages = [replaced(message) if index in plain else message for index, message in enumerate(talk.messages)]
    between = replace(talk, messages=messages).whole().split(OTHER)
    if len(between) != len(plain) + 1 or not text.startswith(between[0]):
        return {}
    found, at = {}, len(between[0])
    for index, following in zip(sorted(plain), between[1:], strict=True):
        said = content_of(talk.messages[index])
        for shown in (said, said.strip(), said.lstrip(), said.rstrip()):
            if text.startswith(shown, at) and text.startswith(following, at + len(shown)):
                found[index] = at, at + len(shown)
                at += len(shown) + len(following)
                break
        else:
            return {}
    return found if at == len(text) else {}


def is_plain(message: dict[str, Any]) -> bool:
    said = message.get("content")
    others = message.get("tool_calls") or any(message.get(name) for name in THOUGHTS)
    return message["role"] == "assistant" and isinstance(said, str) and bool(said.strip()) and not others


class Begins:
    """Where the turns of a conversation begin.

    A rendering of what is before a turn tells it. Of turns alike, a few are rendered: the first three, the last, and
    ever fewer between. Where these begin with the same text, so do the others whose text is the same.
    """

    def __init__(self, talk: Conversation, text: str, opening: str):
        self.talk, self.text, self.opening = talk, text, opening
        roles = [message["role"] for message in talk.messages]
        self.asked_last = max((index for index, role in enumerate(roles) if role == "user"), default=-1)
        self.last = {self.kind(index): index for index, role in enumerate(roles) if role == "assistant"}
        self.rendered: dict[Any, list[tuple[int, int]]] = {}  # (start, first) of those that were rendered
        self.count: dict[Any, int] = {}

    def kind(self, index: int) -> tuple[Any, ...]:
        before = self.talk.messages[index - 1] if index else {}
        own = self.talk.messages[index]
        fields = (bool(own.get("tool_calls")), *(bool(own.get(name)) for name in THOUGHTS))
        return before.get("role"), bool(before.get("tool_calls")), *fields, index > self.asked_last

    def of(self, index: int, first: int, done: int) -> int:
        """Return where the turn of message `index` begins; its content begins at `first`, the turn before it ended at
        `done`.
        """
        kind = self.kind(index)
        known = self.rendered.setdefault(kind, [])
        count = self.count[kind] = self.count.get(kind, 0) + 1
        if count > 3 and count & (count - 1) and index != self.last[kind]:
            lead = self.lead(known)
            if lead is not None and first - lead[1] >= done and self.text.endswith(lead[0], 0, first):
                return first - lead[1]
        start = begin(self.talk, self.text, index, first, done, self.opening)
        known.append((start, first))
        return start

    def lead(self, known: list[tuple[int, int]]) -> tuple[str, int] | None:
        """Return the text that ends in the contents of the turns that were rendered, and how much of it is theirs;
        None where they differ.
        """
        before = [self.text[max(start - CONTEXT, 0) : start] for start, _ in known]
        size = min(common_suffix(before[0], other) for other in before)
        leads = {self.text[start - size : first] for start, first in known}
        start, first = known[0]
        return (leads.pop(), first - start) if len(leads) == 1 and size >= LEAST else None


# ---------------------------------------------------------------- one turn


def begin(talk: Conversation, text: str, index: int, first: int, done: int, opening: str) -> int:
    """Return where the turn of message `index` begins: after what the model would be given.

    Its content begins at `first`; the turn before it ended at `done`.
    """
    prompt = before = None
    if index:
        try:
            prompt = talk.render(talk.messages[:index], ask=True)
        except RowError:  # for instance, a template that refuses a system message alone
            prompt = None
    if prompt is not None and text.startswith(prompt):
        return len(prompt)
    if prompt is not None:
        before = altered(talk, index - 1)
    if prompt is None or before == text:
        if not opening:  # only the end of the prompt opens a turn: blanks between them belong to the assistant
            return done + len(text[done:first].rstrip())
        at = text.rfind(opening, done, first)
        return at + len(opening) if at >= 0 else first
    # Either the generation prompt has something that the finished conversation lacks (an opened <think>), or the
    # text before looks different when it is last. The text after the previous message decides in both cases.
    other = talk.render([*talk.messages[: index - 1], replaced(talk.messages[index - 1])], ask=True)
    tail = prompt[len(prompt) - common_suffix(prompt, other) :]
    low = len(text) - common_suffix(text, before)
    return max(done, min(low + common_prefix(text[low:], tail), first))


def end(talk: Conversation, text: str, index: int, last: int, close: str) -> int:
    """Return where the turn of message `index` ends: after the token that closes it, which follows the content at
    `last`.
    """
    at = text.find(close, last) if close else -1
    if at >= 0 and not text[last:at].strip():
        return at + len(close)
    # Other text of the turn follows its content (the end of a tool call), or it is closed in another way. The
    # close is searched for up to the content of the next message.
    limit = len(text)
    if index + 1 < len(talk.messages):
        limit = max(last, common_prefix(text, altered(talk, index + 1)))
    if 0 <= at < limit:
        return at + len(close)
    pattern = specials(talk.tokenizer)
    special = pattern.search(text, last, limit) if pattern else None
    return special.end() if special else last


def verify(talk: Conversation, text: str, span: Span, supervised: str) -> None:
    """Check that the tokens chosen for a turn, decoded, contain what the assistant says in the row.

    The template may show less of a turn than the row has (thinking of earlier turns is dropped). Raises RowError.
    """
    message = talk.messages[span.index]
    row_text, shown, chosen = squash(content_of(message)), squash(text[span.first : span.last]), squash(supervised)
    calls = [call.get("function", call).get("name", "") for call in message.get("tool_calls") or []]
    if calls:  # some templates leave out what is said beside a call
        good = all(squash(name) in chosen for name in calls)
    else:
        good = (shown and shown in row_text) or row_text.rpartition("</think>")[2] in chosen
    if good and shown in chosen:
        return
    expected = f"calls {', '.join(calls)}" if calls else f"says {content_of(message)[:80]!r}"
    raise RowError(
        f"messages[{span.index}]: the assistant {expected}, but in the chat template's text its turn is "
        f"{supervised[:80]!r}; set chat_template_path to a template that shows it, or give prompt and "
        "completion as texts"
    )
