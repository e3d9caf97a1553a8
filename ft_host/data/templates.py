"""Chat templates: rendering conversations with them, and what a template does whatever the row: the marks around the
assistant's turns, and in which form it takes calls of tools and their results.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.data.call_forms import CALL_ID, CALLED, TOOL, call_with, fitted
from ft_host.data.messages import content_of, is_data
from ft_host.errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

# A placeholder for content, from the private use area: no text or template contains it, and nothing strips it.
OTHER = "\ue0a7"
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Conversation:
    """Messages with the arguments of their rendering."""

    tokenizer: PreTrainedTokenizerBase
    messages: list[Message]
    tools: list[Any] | None
    arguments: dict[str, Any]  # the row's chat_template_kwargs
    continues: bool = False  # the last message is the beginning of an answer, which completions continue

    def render(self, messages: list[Message], *, ask: bool = False) -> str:
        """Return the text of some messages, with the generation prompt if `ask`. Raises RowError where the template
        raises.
        """
        return rendered(self, messages, tokenize=False, add_generation_prompt=ask)

    def prompt(self) -> str:
        """Return the text that a model is given to answer: up to the generation prompt, or to the end of the answer
        that is begun.
        """
        if not self.continues:
            return self.render(self.messages, ask=True)
        begun = extended(self.messages[-1], after=OTHER)
        text, found, _ = self.render([*self.messages[:-1], begun]).rpartition(OTHER)
        if not found:
            raise RowError("the chat template leaves out the beginning of the answer, with which the prompt ends")
        return text

    def whole(self) -> str:
        """Return the text of all messages. Where the template closes a turn only by the mark of the next one, that
        mark ends an assistant turn at the end too: a model that never sees it there doesn't learn to stop.
        """
        text = self.render(self.messages)
        last = self.messages[-1] if self.messages else {"role": ""}
        if last["role"] != "assistant":
            return text
        return text + open_end(self.tokenizer, template_of(self), bool(last.get("tool_calls")))


def extended(message: Message, before: str = "", after: str = "") -> Message:
    """Return the message with more text around its content."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return {**message, "content": before + content + after}
    parts = [dict(part) for part in content]
    parts[0]["text"] = before + parts[0]["text"]
    parts[-1]["text"] += after
    return {**message, "content": parts}


def rendered(talk: Conversation, messages: list[Message], **arguments: Any) -> Any:
    """Call `apply_chat_template`. An error of the template becomes a RowError."""
    if not talk.tokenizer.chat_template:
        raise RowError(
            "the row is a conversation, but the tokenizer has no chat template; set chat_template_path to a .jinja "
            "file or to a folder with a tokenizer that has one"
        )
    try:
        given = fitted(messages, talk.tokenizer, template_of(talk))
        return talk.tokenizer.apply_chat_template(given, tools=talk.tools, **arguments, **talk.arguments)
    except RowError:
        raise
    except Exception as error:  # templates raise on purpose, add text to None, or count too far
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
    for name in THOUGHTS:
        if message.get(name):
            out[name] = OTHER
    calls = []
    for call in message.get("tool_calls") or []:
        inner = dict(call.get("function") or call)
        if inner.get("arguments"):
            as_text = isinstance(inner["arguments"], str)
            inner["arguments"] = json.dumps({OTHER: OTHER}, ensure_ascii=False) if as_text else {OTHER: OTHER}
        else:  # not both: some templates repeat the function's name in front of its result
            inner["name"] = OTHER
        calls.append({**call, "function": inner} if call.get("function") else inner)
    if calls:
        out["tool_calls"] = calls
    if content_of(message) or not calls:
        content = message.get("content")
        if is_data(content):
            out["content"] = {OTHER: OTHER} if isinstance(content, dict) else [OTHER]
        else:
            out["content"] = [{"type": "text", "text": OTHER}] if isinstance(content, list) else OTHER
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
    where none of it is special. Where nothing is there it is what opens the next turn (`open_end`).
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
        return opening, closing.strip() or open_end(tokenizer, template, False).strip()
    stop = match.end()
    while following := pattern.match(closing, stop):
        stop = following.end()
    return opening, closing[match.start() : stop]


@functools.lru_cache(maxsize=64)
def open_end(tokenizer: PreTrainedTokenizerBase, template: str, called: bool) -> str:
    """Return what closes an assistant turn at the end of a conversation, where the template writes nothing there: what
    it writes between such a turn and the next one, up to a special token. "" for a template that closes its turns.

    `called`: the turn calls a tool, so that the next one is its result.
    """
    asked = {"role": "user", "content": "a"}
    said = {"role": "assistant", "content": OTHER}
    following = asked
    if called:
        said = {"role": "assistant", "content": "", "tool_calls": [call_with({"a": OTHER})]}
        following = {"role": "tool", "tool_call_id": CALL_ID, "name": CALLED, "content": "a"}
    talk = Conversation(tokenizer, [], [TOOL] if called else None, {})
    try:
        alone = talk.render([asked, said])
        more = talk.render([asked, said, following])
    except RowError:  # the template refuses this small conversation
        return ""
    pattern = specials(tokenizer)
    after = alone.rpartition(OTHER)
    if pattern is None or not after[1] or pattern.search(after[2]) or (not called and after[2].strip()):
        return ""
    if not more.startswith(alone):
        return ""
    match = pattern.search(more, len(alone))
    return more[len(alone) : match.end()] if match and not more[len(alone) : match.start()].strip() else ""


def added_ends(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that close turns at the end of conversations because the host adds them (`open_end`).
    Generation ends at them too.
    """
    if not isinstance(tokenizer.chat_template, str):
        return frozenset()
    marks = (open_end(tokenizer, tokenizer.chat_template, called).strip() for called in (False, True))
    return frozenset(tokenizer.convert_tokens_to_ids(mark) for mark in marks if mark)
