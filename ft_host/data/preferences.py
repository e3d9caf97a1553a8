"""Preference rows: from the usual formats to token ids.

A pair becomes {"prompt", "chosen", "rejected"}, a judged completion {"prompt", "completion", "label"}: all texts or all
lists of messages; or with the suffix `_ids` where the row holds tokens. `tools` and `chat_template_kwargs` are kept.
Where a row has no prompt, the prompt is the common start of its two texts or conversations.

Tokens are those of TRL's DPO and KTO for the same row, apart from doubled BOS and EOS (`tokens`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ft_host.data.formats import EXTRAS, alike, alpaca, content_of, kind_of, messages_of, with_system
from ft_host.data.preference_errors import preference_refusal, unlike_the_prompt
from ft_host.data.templates import common_prefix
from ft_host.data.tokens import (
    chat_ids,
    checked_ids,
    conversation,
    encode,
    ends_in_eos_only,
    shared,
    warn_boundary,
    with_eos,
)
from ft_host.errors import RowError
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Message = dict[str, Any]
Completion = str | list[Message] | list[int]

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
        return extras | explicit(row)
    wrong = unlike_the_prompt(row)
    if wrong:
        raise RowError(wrong)
    return extras | implicit(completions_of(row, PAIR))


def extras_of(row: Row) -> Row:
    return {name: row[name] for name in EXTRAS if row.get(name) is not None}


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
    if isinstance(parts["prompt"], list) and all(parts[name][:size] == parts["prompt"] for name in PAIR):
        return parts | {name: parts[name][size:] for name in PAIR} | {"implicit_prompt": False}
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
    }


def given_pair(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return a pair of token ids. Without `prompt_ids` the prompt is their common start."""
    size = len(tokenizer)
    ids = {}
    for name in PAIR:
        column = f"{name}_ids"
        ids[name] = checked_ids(row.get(column), column, size)
    if row.get("prompt_ids") is not None:
        prompt = checked_ids(row["prompt_ids"], "prompt_ids", size)
        return {
            "prompt_ids": prompt,
            "chosen_ids": ids["chosen"],
            "rejected_ids": ids["rejected"],
            "implicit_prompt": False,
        }
    parts = implicit(ids)
    return {f"{name}_ids": parts[name] for name in ("prompt", *PAIR)} | {"implicit_prompt": True}


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
        return [extras | {name: checked_ids(row[name], name, size) for name in ("prompt_ids", "completion_ids")}]
    if row.get("completion") is None and row.get("messages") is not None:
        messages = messages_of(row["messages"], "messages")
        if messages[-1]["role"] != "assistant":
            raise RowError(
                f"column messages: ends with a message of {messages[-1]['role']}, expected one of the assistant, "
                "which the label judges",
                "messages",
            )
        return [extras | {"prompt": messages[:-1], "completion": messages[-1:]}]
    if "prompt" not in row:
        raise RowError(preference_refusal(row, "judged"))
    if isinstance(row["completion"], dict):
        row = {**row, "completion": [row["completion"]]}
    return [extras | completions_of(row, ("prompt", "completion"))]


def label_of(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value is None:
        raise RowError(
            "column label: found nothing, expected true or false; leave out rows without a judgement", "label"
        )
    good = repr(1 if isinstance(value, (int, float)) else value)
    raise RowError(
        f"column label: found {kind_of(value)}, expected true or false. You decide what counts as good: write "
        f'the column anew, for instance with datasets: map(lambda row: {{"label": row["label"] == {good}}})',
        "label",
    )


def is_empty(completion: Completion) -> bool:
    """Return whether a completion has no content: a blank text, messages without text or tool calls, no tokens."""
    if isinstance(completion, str):
        return not completion.strip()
    return all(
        isinstance(message, dict) and not content_of(message).strip() and not message.get("tool_calls")
        for message in completion
    )


# ---------------------------------------------------------------- tokens


def tokenize_completions(
    row: Row, tokenizer: PreTrainedTokenizerBase, names: tuple[str, ...]
) -> tuple[list[int], list[list[int]]]:
    """Return token ids of a row's prompt, and of each of its completions `names`.

    Prompt + completion are the tokens of the whole text or conversation. A text ends in EOS. A completion begins where
    the tokens of the prompt alone and of the whole diverge; with several completions, at the first such place, so that
    all have one prompt. What the prompt alone has after that is left out, with a warning.
    """
    if "prompt_ids" in row:
        return row["prompt_ids"], [row[f"{name}_ids"] for name in names]
    prompt = row["prompt"]
    if isinstance(prompt, list):
        # Templates can't render an empty list: without a prompt the whole conversation is the completion.
        alone = chat_ids(conversation(tokenizer, prompt, row), ask=True) if prompt else []
        wholes = [chat_ids(conversation(tokenizer, prompt + row[name], row)) for name in names]
    else:
        alone = encode(tokenizer, prompt)
        wholes = [encode(tokenizer, prompt + with_eos(row[name], tokenizer)) for name in names]
    boundary = min(shared(alone, ids) for ids in wholes)
    if boundary < len(alone) and not ends_in_eos_only(alone[boundary:], tokenizer):
        warn_boundary(tokenizer.decode(alone[boundary:]))
    return alone[:boundary], [ids[boundary:] for ids in wholes]


def fit_length(
    prompt_ids: list[int], completions: list[list[int]], config: RunConfig
) -> tuple[list[int], list[list[int]], dict[str | int, int]] | Drop:
    """Truncate prompt and completions so that the prompt with each of them has at most `max_length` tokens.

    Also returns how many tokens were cut: of "prompt", and of each completion by its index; what wasn't cut is left
    out.

    keep_start: each completion loses its end. Drop where the prompt leaves no room for it. keep_end: the prompt loses
    its start, as much as the longest completion needs. All completions keep the same prompt, so that a pair is compared
    on one prompt, which is computed once; TRL cuts each sequence by itself. Drop where the longest completion leaves no
    room for a token of the prompt; TRL trains on it with a truncated completion.
    """
    limit = config.max_length
    longest = max(map(len, completions), default=0)
    if limit is None or len(prompt_ids) + longest <= limit:
        return prompt_ids, completions, {}
    if config.truncation_mode == "keep_start":
        room = limit - len(prompt_ids)
        if room <= 0:
            return Drop("the prompt alone fills max_length")
        cut: dict[str | int, int] = {i: len(ids) - room for i, ids in enumerate(completions) if len(ids) > room}
        return prompt_ids, [ids[:room] for ids in completions], cut
    room = limit - longest
    if room <= 0:
        return Drop("a completion alone fills max_length")
    return prompt_ids[-room:], completions, {"prompt": len(prompt_ids) - room}
