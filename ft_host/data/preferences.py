"""Preference rows: from the usual formats to token ids.

A pair becomes {"prompt", "chosen", "rejected"}, a judged completion {"prompt", "completion", "label"}: all texts or all
lists of messages; or with the suffix `_ids` where the row holds tokens. `tools` and `chat_template_kwargs` are kept.
Where a row has no prompt, the prompt is the common start of its two texts or conversations.

Tokens are those of TRL's DPO and KTO for the same row, apart from doubled BOS and EOS (`tokens`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ft_host.data.formats import alike, alpaca, check_one_format, extras_of, with_system
from ft_host.data.given_tokens import checked_ids
from ft_host.data.messages import check_unweighted, content_of, kind_of, messages_of
from ft_host.data.padding import without_padding
from ft_host.data.preference_errors import label_of, preference_refusal, unlike_the_prompt
from ft_host.data.prefill import apart
from ft_host.data.templates import common_prefix
from ft_host.data.tokens import shared
from ft_host.errors import RowError
from ft_host.types import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

PAIR = ("chosen", "rejected")

# ---------------------------------------------------------------- pairs


def preference_row(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return a pair in any known format as {"prompt", "chosen", "rejected"}, all texts or all lists of messages.

    For tokens it is {"prompt_ids", "chosen_ids", "rejected_ids"}. Further columns: `implicit_prompt` (whether the
    prompt is the common start), `margin` as a float where the row has one, `tools` and `chat_template_kwargs`. Raises
    RowError that says what was found and what was expected.
    """
    extras = extras_of(row)
    if row.get("margin") is not None:
        extras["margin"] = margin_of(row["margin"])
    if any(row.get(f"{name}_ids") is not None for name in PAIR):
        return extras | given_pair(row, tokenizer)
    if not all(name in row for name in PAIR):
        raise RowError(preference_refusal(row, "pair"))
    row = dict(row)
    for name in PAIR:
        if isinstance(row[name], dict):  # one message, as in ShareGPT
            row[name] = [row[name]]
    if row.get("prompt") is None or row["prompt"] == []:  # filled in by Arrow
        row.pop("prompt", None)
        row |= prompt_elsewhere(row, bool(tokenizer.chat_template))
    if "prompt" in row:
        parts = explicit(row)
    else:
        wrong = unlike_the_prompt(row)
        if wrong:
            raise RowError(wrong)
        parts = implicit(completions_of(row, PAIR))
    for name in PAIR:
        check_unweighted(parts[name], name)
    return extras | parts


def margin_of(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RowError(f"column margin: found {kind_of(value)}, expected a number", "margin")
    return float(value)


def prompt_elsewhere(row: Row, chat: bool) -> Row:
    """Return the prompt of a pair in ShareGPT's or Alpaca's form; nothing for other rows."""
    if row.get("conversations") and isinstance(row["chosen"], list):
        return {"prompt": with_system(row, messages_of(row["conversations"], "conversations"))}
    if isinstance(row.get("instruction"), str) and isinstance(row["chosen"], str):
        if unlike_the_prompt(row) is None:  # chosen and rejected repeat it
            return {}
        base = {"instruction": row["instruction"], "input": row.get("input")}
        base |= {name: row[name] for name in ("system", "history") if row.get(name)}
        rows = {name: alpaca({**base, "output": row[name]}, chat) for name in PAIR}
        return {"prompt": rows["chosen"]["prompt"]} | {name: rows[name]["completion"] for name in PAIR}
    return {}


def completions_of(row: Row, columns: tuple[str, ...]) -> Row:
    """Return these columns, all texts or all messages.

    An empty list is a completion without messages: the method drops and counts it, like an empty text.
    """
    filled = tuple(name for name in columns if row[name] != [])
    if len(filled) < len(columns) and any(not isinstance(row[name], list) for name in filled):
        return alike(row, columns)  # raises: texts next to a list
    return {name: [] for name in columns} | alike(row, filled)


def explicit(row: Row) -> Row:
    """Return a pair with an explicit prompt.

    Completions that repeat the conversation before them, as in many hub data sets, lose the repeated part.
    """
    talks = all(isinstance(row[name], list) for name in PAIR)
    if talks and isinstance(row["prompt"], str):
        parts = implicit(completions_of(row, PAIR))
        if not parts["prompt"] and row["prompt"]:
            raise RowError(
                f"column prompt: found {kind_of(row['prompt'])}, while chosen and rejected are lists of messages that "
                "don't begin with it; expected a prompt of messages, or whole conversations in chosen and rejected",
                "prompt",
            )
        question = next((message for message in parts["prompt"] if message["role"] == "user"), None)
        if row["prompt"] and (question is None or content_of(question).strip() != row["prompt"].strip()):
            seen = "nothing" if question is None else kind_of(content_of(question))
            raise RowError(
                f"column prompt: found {kind_of(row['prompt'])}, but the user message that begins the conversations "
                f"in chosen and rejected is {seen}; expected the same text, or a prompt of messages",
                "prompt",
            )
        return parts
    parts = completions_of(row, ("prompt", *PAIR))
    size = len(parts["prompt"])
    if size and isinstance(parts["prompt"], list) and all(parts[name][:size] == parts["prompt"] for name in PAIR):
        kept = {name: parts[name][size:] for name in PAIR}
        return parts | kept | {"implicit_prompt": False} | apart(parts["prompt"])
    return parts | {"implicit_prompt": False}


def implicit(parts: Row) -> Row:
    """Return a pair whose prompt is the common start of chosen and rejected, whole texts or whole conversations.

    One item (message, character) is left to each, so that neither is empty where one is a prefix of the other. A space
    before the boundary goes to the completions, since tokens begin with spaces.
    """
    chosen, rejected = parts["chosen"], parts["rejected"]
    boundary = common_prefix(chosen, rejected) if isinstance(chosen, str) else shared(chosen, rejected)
    if isinstance(chosen, str) and 0 < boundary < min(len(chosen), len(rejected)) and chosen[boundary - 1] == " ":
        boundary -= 1
    boundary = max(min(boundary, len(chosen) - 1, len(rejected) - 1), 0)
    return {
        "prompt": chosen[:boundary],
        "chosen": chosen[boundary:],
        "rejected": rejected[boundary:],
        "implicit_prompt": True,
        **apart(chosen[:boundary]),
    }


def given_pair(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return a pair of token ids. Without `prompt_ids` the prompt is their common start."""
    size = len(tokenizer)
    ids = {}
    for name in PAIR:
        ids[name] = given_ids(row, name, size)
    if row.get("prompt_ids") is not None:
        prompt = given_ids(row, "prompt", size)
        return {
            "prompt_ids": prompt,
            "chosen_ids": ids["chosen"],
            "rejected_ids": ids["rejected"],
            "implicit_prompt": False,
        }
    parts = implicit(ids)
    return {f"{name}_ids": parts[name] for name in ("prompt", *PAIR)} | {"implicit_prompt": True}


def given_ids(row: Row, name: str, size: int) -> list[int]:
    """Return the tokens of a column `NAME_ids`, without what `NAME_attention_mask` says is padding."""
    column = f"{name}_ids"
    columns = without_padding({column: row.get(column)}, row, f"{name}_attention_mask")
    return checked_ids(columns[column], column, size)


# ---------------------------------------------------------------- judged completions


def unpaired_rows(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return a judged completion as one row, and a pair as two, the chosen one with label True first.

    A row is {"prompt", "completion", "label"} or {"prompt_ids", "completion_ids", "label"}, with `tools` and
    `chat_template_kwargs`. The `label` of a conversation in `messages` is for its last assistant turn. Raises RowError,
    also for labels that aren't booleans.
    """
    if all(row.get(name) is not None for name in PAIR) or all(row.get(f"{name}_ids") is not None for name in PAIR):
        pair = preference_row(row, tokenizer)
        end = "_ids" if "prompt_ids" in pair else ""
        kept = extras_of(pair) | {f"prompt{end}": pair[f"prompt{end}"]}
        return [{**kept, f"completion{end}": pair[f"{name}{end}"], "label": name == "chosen"} for name in PAIR]
    extras = extras_of(row)
    if "label" not in row or not any(name in row for name in ("completion", "completion_ids", "messages")):
        raise RowError(preference_refusal(row, "judged"))
    extras["label"] = label_of(row["label"])
    if row.get("completion_ids") is not None:
        size = len(tokenizer)
        if row.get("prompt_ids") is None:
            raise RowError(
                f"column prompt_ids: found {kind_of(row.get('prompt_ids'))}, expected token ids, as in completion_ids",
                "prompt_ids",
            )
        return [extras | {f"{name}_ids": given_ids(row, name, size) for name in ("prompt", "completion")}]
    if row.get("completion") is None and row.get("messages") is not None:
        messages = messages_of(row["messages"], "messages")
        if messages[-1]["role"] != "assistant":
            raise RowError(
                f"column messages: ends with a message of {messages[-1]['role']}, expected one of the assistant, "
                "which the label judges",
                "messages",
            )
        check_unweighted(messages[-1:], "messages")
        return [extras | {"prompt": messages[:-1], "completion": messages[-1:]} | apart(messages[:-1])]
    if "prompt" not in row:
        raise RowError(preference_refusal(row, "judged"))
    if isinstance(row["completion"], dict):
        row = {**row, "completion": [row["completion"]]}
    parts = completions_of(row, ("prompt", "completion"))
    talks = [name for name in ("messages", "conversations") if row.get(name) is not None]
    check_one_format(parts["prompt"], parts["completion"], row, talks)
    check_unweighted(parts["completion"], "completion")
    return [extras | parts]
