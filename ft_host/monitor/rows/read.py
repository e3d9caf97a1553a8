"""A raw row as a person reads it: what is asked, what is answered, and what else stands beside them.

The formats are those of `ft_host.data`; tokens are decoded. A row that no method could use isn't read: it is refused,
with its place, when its turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.batch import IGNORE
from ft_host.data.differences import parts_of
from ft_host.data.formats import prompt_part, standard
from ft_host.data.given_tokens import given_tokens
from ft_host.data.messages import content_of
from ft_host.data.preferences import PAIR, preference_row, unpaired_rows
from ft_host.errors import RowError
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENED, CLOSED = "<think>", "</think>"
# Columns with the whole text that a model should write, and with the final answer.
WHOLE = ("completion", "solution", "response", "output", "reference")
ANSWERS = ("answer", "ground_truth", "target", "label", "final_answer", "expected", "expected_answer")


@dataclass(frozen=True)
class Part:
    """A text that is learnt, or learnt to avoid. `asked`: what it answers, "" for plain text. `said`: the text without
    its thoughts. `only_thoughts`: there are thoughts and nothing after them. `talk`: it is of messages."""

    column: str
    asked: str
    said: str
    only_thoughts: bool = False
    calls: bool = False
    talk: bool = False


@dataclass(frozen=True)
class Seen:
    """A row. `prompt`: all that stands before the answer, None for plain text. `unanswered`: a conversation whose last
    message is the user's."""

    row: Row
    where: str
    prompt: str | None
    parts: list[Part]
    asked: str | None = None  # what of the prompt is to be answered: the user's last message, or all of a text
    label: bool | None = None
    talks: bool = False  # a whole conversation, in which each message may be learnt
    unanswered: bool = False
    columns: dict[str, Any] = field(default_factory=dict)  # further ones that a loss or a reward reads

    def of(self, column: str) -> list[Part]:
        return [part for part in self.parts if part.column == column]


def read(row: Row, where: str, tokenizer: PreTrainedTokenizerBase, columns: set[str], by_rollout: bool) -> Seen | None:
    """Return the row as it reads; None for one in no known format. `columns`: names of further ones to keep."""
    kept = {name: row[name] for name in row if name in columns}
    try:
        if all(row.get(name) is not None or row.get(f"{name}_ids") is not None for name in PAIR):
            return _pair(row, where, tokenizer, kept)
        if not by_rollout and isinstance(row.get("label"), bool):
            return _judged(row, where, tokenizer, kept)
        return _plain(row, where, tokenizer, kept, by_rollout)
    except RowError:
        return None


def _pair(row: Row, where: str, tokenizer: Any, kept: dict[str, Any]) -> Seen:
    found = preference_row(row, tokenizer)
    end = "_ids" if "prompt_ids" in found else ""
    prompt, asked = _prompt(found[f"prompt{end}"], tokenizer)
    parts = [_part(name, asked, found[f"{name}{end}"], tokenizer) for name in PAIR]
    return Seen(row, where, prompt, parts, asked, columns=kept)


def _judged(row: Row, where: str, tokenizer: Any, kept: dict[str, Any]) -> Seen:
    (found,) = unpaired_rows(row, tokenizer)
    end = "_ids" if "prompt_ids" in found else ""
    prompt, asked = _prompt(found[f"prompt{end}"], tokenizer)
    parts = [_part("completion", asked, found[f"completion{end}"], tokenizer)]
    kept = {name: value for name, value in kept.items() if name != "label"}
    return Seen(row, where, prompt, parts, asked, found["label"], columns=kept)


def _plain(row: Row, where: str, tokenizer: Any, kept: dict[str, Any], by_rollout: bool) -> Seen:
    """A row to imitate, or, where completions are sampled, a prompt."""
    if by_rollout and row.get("completion") is None and row.get("input_ids") is None:
        prompt, asked = _prompt(prompt_part(row, chat=True)["prompt"], tokenizer)
        return Seen(row, where, prompt, [], asked, columns=kept)
    found = standard(row, chat=True)
    if "input_ids" in found:
        ids, labels = given_tokens(found, tokenizer, None)
        first = next((at for at, label in enumerate(labels) if label != IGNORE), len(ids))
        prompt = tokenizer.decode(ids[:first], skip_special_tokens=True) if first else None
        learnt = [token for token, label in zip(ids, labels, strict=True) if label != IGNORE]
        column = "completion" if first else "text"
        return Seen(row, where, prompt, [_part(column, prompt or "", learnt, tokenizer)], prompt, columns=kept)
    if "text" in found:
        return Seen(row, where, None, [_part("text", "", found["text"], tokenizer)], columns=kept)
    if "completion" in found:
        prompt, asked = _prompt(found["prompt"], tokenizer)
        return Seen(
            row, where, prompt, [_part("completion", asked, found["completion"], tokenizer)], asked, columns=kept
        )
    return _conversation(row, where, found["messages"], tokenizer, kept)


def _conversation(row: Row, where: str, messages: list[Row], tokenizer: Any, kept: dict[str, Any]) -> Seen:
    parts = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight") != 0:
            asked = next((content_of(each) for each in reversed(messages[:at]) if each["role"] == "user"), "")
            parts.append(_part("completion", asked, [message], tokenizer))
    last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=len(messages))
    prompt = "\n".join(content_of(message) for message in messages[:last])
    asked = parts[-1].asked if parts else prompt
    return Seen(row, where, prompt, parts, asked, None, True, messages[-1]["role"] == "user", kept)


def _prompt(prompt: Any, tokenizer: Any) -> tuple[str, str]:
    """Return all of a prompt, and the text that is to be answered."""
    if isinstance(prompt, str):
        return prompt, prompt
    if not prompt or isinstance(prompt[0], int):
        text = tokenizer.decode(prompt, skip_special_tokens=True)
        return text, text
    asked = next((content_of(message) for message in reversed(prompt) if message["role"] == "user"), "")
    return "\n".join(content_of(message) for message in prompt), asked


def _part(column: str, asked: str, given: Any, tokenizer: Any) -> Part:
    """A completion of text, of messages or of tokens."""
    if isinstance(given, list) and given and isinstance(given[0], dict):
        thoughts, said = zip(*(parts_of(message) for message in given), strict=True)
        calls = any(message.get("tool_calls") for message in given)
        text = "\n".join(said)
        found = any(thoughts) or text.lstrip().startswith(OPENED)
        return Part(column, asked, text, found and not _after(text) and not calls, calls, talk=True)
    text = given if isinstance(given, str) else tokenizer.decode(given, skip_special_tokens=True)
    thought, closed, after = text.rpartition(CLOSED)
    if closed:
        return Part(column, asked, after, bool(thought.replace(OPENED, "").strip()) and not after.strip())
    return Part(column, asked, text, text.lstrip().startswith(OPENED))


def _after(text: str) -> str:
    """What is said after thoughts; nothing where they don't end."""
    return "" if text.lstrip().startswith(OPENED) else text.strip()
