"""Chat templates: rendering them, and finding the assistant's part of the rendered text.

Most published templates don't mark the assistant's turns, so they are found in the text. A turn *begins* where the
prompt before it, rendered with the generation prompt, ends: that is what a model would be given at that point. It
*ends* after the token that closes it. Its content is found by rendering the conversation again with other content in
its place: the text before and after the content stays the same, even if the template strips or cuts it.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.data.formats import content_of
from ft_host.errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

# A placeholder for content, from the private use area: no text or template contains it, and nothing strips it.
OTHER = "\ue0a7"
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Conversation:
    """Messages with the arguments of their rendering."""

    tokenizer: PreTrainedTokenizerBase
    messages: list[Message]
    tools: list[Any] | None
    arguments: dict[str, Any]  # the row's chat_template_kwargs

    def render(self, messages: list[Message], *, ask: bool = False) -> str:
        """Return the text of some messages, with the generation prompt if `ask`. Raises RowError where the template
        raises.
        """
        return rendered(self, messages, tokenize=False, add_generation_prompt=ask)


def rendered(talk: Conversation, messages: list[Message], **arguments: Any) -> Any:
    """Call `apply_chat_template`. An error of the template becomes a RowError."""
    import jinja2

    if not talk.tokenizer.chat_template:
        raise RowError(
            "the row is a conversation, but the tokenizer has no chat template; set chat_template_path to a .jinja "
            "file or to a folder with a tokenizer that has one"
        )
    try:
        return talk.tokenizer.apply_chat_template(messages, tools=talk.tools, **arguments, **talk.arguments)
    except (jinja2.TemplateError, TypeError, ValueError) as error:  # templates raise on purpose, or add text to None
        roles = ", ".join(message["role"] for message in messages)
        raise RowError(f"the chat template refuses the conversation: {error} (roles: {roles})") from error


def template_of(talk: Conversation) -> str:
    return talk.tokenizer.get_chat_template(None, talk.tools)


def has_markers(talk: Conversation) -> bool:
    """Return whether the template marks the assistant's turns itself, with {% generation %}."""
    return bool(talk.tokenizer.chat_template) and MARKERS.search(template_of(talk)) is not None


# ---------------------------------------------------------------- texts


def common_prefix(a: str, b: str) -> int:
    """Return how many characters two texts share at their start. Bisects, since slices compare fast."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def common_suffix(a: str, b: str) -> int:
    return common_prefix(a[::-1], b[::-1])


def squash(text: str) -> str:
    """Remove what templates and tokenizers may change in a text: spaces, case, Unicode form."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def replaced(message: Message) -> Message:
    """Return the message with other content in all of its fields."""
    out = dict(message)
    for name in ("reasoning_content", "reasoning", "thinking"):
        if message.get(name):
            out[name] = OTHER
    calls = []
    for call in message.get("tool_calls") or []:
        inner = dict(call.get("function") or call)
        if inner.get("arguments"):
            inner["arguments"] = OTHER if isinstance(inner["arguments"], str) else {OTHER: OTHER}
        else:  # not both: some templates repeat the function's name in front of its result
            inner["name"] = OTHER
        calls.append({**call, "function": inner} if call.get("function") else inner)
    if calls:
        out["tool_calls"] = calls
    if content_of(message) or not calls:
        listed = isinstance(message.get("content"), list)
        out["content"] = [{"type": "text", "text": OTHER}] if listed else OTHER
    return out


# ---------------------------------------------------------------- what a template does, whatever the row


@functools.lru_cache(maxsize=64)
def specials(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Return a pattern for control tokens; None where the tokenizer has none."""
    names = {str(token) for token in tokenizer.all_special_tokens}
    names |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names.discard(str(tokenizer.bos_token))
    if tokenizer.eos_token:  # some use one token for both
        names.add(str(tokenizer.eos_token))
    ordered = sorted((name for name in names if name), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


@functools.lru_cache(maxsize=64)
def turn_marks(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Return what opens an assistant turn in the generation prompt ("" if nothing), and what closes it.

    The close is the first special token after the content with those directly behind it, or all text after the content
    where none of it is special.
    """
    talk = Conversation(tokenizer, [], None, {})
    ask = [{"role": "user", "content": "a"}]
    try:
        before, prompted = talk.render(ask), talk.render(ask, ask=True)
        opening = prompted[common_prefix(before, prompted) :]
        whole = talk.render([*ask, {"role": "assistant", "content": OTHER}])
    except RowError:  # the template refuses this small conversation; those of the data may be fine
        return "", ""
    closing = whole.rpartition(OTHER)[2]
    pattern = specials(tokenizer)
    match = pattern.search(closing) if pattern else None
    if match is None:
        return opening, closing.strip()
    stop = match.end()
    while following := pattern.match(closing, stop):
        stop = following.end()
    return opening, closing[match.start() : stop]


# ---------------------------------------------------------------- spans


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
    for index, message in enumerate(talk.messages):
        if message["role"] != "assistant":
            continue
        other = altered(talk, index)
        first = common_prefix(text, other)
        last = max(first, len(text) - common_suffix(text, other))
        if other == text:
            if content_of(message).strip() or message.get("tool_calls"):
                raise RowError(f"messages[{index}]: the chat template leaves this assistant turn out")
            continue
        done = spans[-1].stop if spans else 0
        start = begin(talk, text, index, first, done, opening)
        stop = end(talk, text, index, last, close)
        spans.append(Span(index, start, max(stop, last), first, last))
    return spans


def altered(talk: Conversation, index: int) -> str:
    """Render the conversation with other content in one message."""
    return talk.render([*talk.messages[:index], replaced(talk.messages[index]), *talk.messages[index + 1 :]])


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
        f"{supervised[:80]!r}; set chat_template_path to a template that shows it, or use prompt and completion"
    )
