"""Error messages for rows that aren't the expected preference data. Imports no torch."""

from __future__ import annotations

from typing import Any

from ft_host.data.format_errors import use_methods
from ft_host.data.messages import kind_of
from ft_host.errors import RowError
from ft_host.types import Row
from ft_host.util.text import nearest

EXPECTED = {
    "pair": (
        "prompt, chosen and rejected (texts, or lists of messages); chosen and rejected that both begin with the "
        "prompt; or chosen_ids and rejected_ids, with or without prompt_ids"
    ),
    "judged": (
        "prompt, completion and label (true or false); messages and label; prompt_ids, completion_ids and label; "
        "or pairs (chosen and rejected), of which each gives a good and a bad completion"
    ),
}
NAMES = {
    "pair": ("prompt", "chosen", "rejected", "chosen_ids", "rejected_ids", "margin"),
    "judged": ("prompt", "completion", "label", "messages", "chosen", "rejected", "prompt_ids", "completion_ids"),
}
# Other names for the good and the bad answer.
BETTER = (
    ("chosen_input_ids", "rejected_input_ids"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("answer_w", "answer_l"),
    ("response_w", "response_l"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("better", "worse"),
    ("winner", "loser"),
    ("accepted", "rejected"),
    ("positive", "negative"),
    ("good", "bad"),
    ("win", "lose"),
)
ANSWERS = ("response", "answer", "output", "generation", "reply")
ASKS = (
    "question",
    "instruction",
    "query",
    "problem",
    "input",
    "user",
    "messages",
    "conversations",
    "conversation",
    "history",
)


def preference_refusal(row: Row, kind: str) -> str:
    """Return a message with the columns found, what they look like, names that may be misspelt, and what
    was expected.

    `kind`: "pair" for rows that should be pairs, "judged" for rows that should be completions with a label.
    """
    message = f"found the columns {', '.join(row) or 'none'}"
    missing = [name for name in NAMES[kind] if name not in row]
    near = {column: nearest(column, missing, "{}") for column in row if column not in NAMES[kind]}
    misspelt = {column: name for column, name in near.items() if name}
    looks = likely_kind(set(row), kind) if "label" not in misspelt.values() else None
    if looks:
        message += f"; they look like {looks}"
    else:
        message += "".join(f"; {column} may be meant as {name}" for column, name in misspelt.items())
    return f"{message}; expected {EXPECTED[kind]}"


def likely_kind(names: set[str], kind: str) -> str | None:
    """What rows with these columns look like, and what to do about it."""
    for good, bad in BETTER:
        if {good, bad} <= names:
            ids = "_ids" if good.endswith("_ids") else ""
            renames = {good: f"chosen{ids}", bad: f"rejected{ids}"}
            written = ", ".join(f"{theirs}: {ours}" for theirs, ours in renames.items() if theirs != ours)
            return f"pairs: set dataset_columns to {{{written}}}"
    if {"completions", "labels"} <= names:
        return "stepwise supervision (a process reward model's)"
    if names & {"image", "images"} and not {"chosen", "rejected"} <= names:
        return "data with images, which isn't supported yet"
    if "label" in names and kind == "judged":
        for name in ANSWERS:
            if name in names and "completion" not in names:
                return f"judged completions: set dataset_columns to {{{name}: completion}}"
        asks = [name for name in ASKS if name in names]
        if "prompt" not in names and asks and "completion" in names:
            return f"judged completions: set dataset_columns to {{{asks[0]}: prompt}}"
        return None
    answers = {"completion", "completion_ids", "messages", "conversations", "text", "input_ids", *ANSWERS} & names
    if "label" in names and answers:
        return f"completions that are good or bad, each by itself: {use_methods('unpaired preference')}"
    if "chosen" in names and answers:
        return None  # most likely the column of the bad ones has another name
    if answers:
        more = ", or add the column label, true for good ones and false for bad ones" if kind == "judged" else ""
        return f"texts to imitate, without worse ones beside them: {use_methods('language modeling')}{more}"
    if "prompt" in names and not names & {"chosen", "rejected"}:
        return "prompts without completions"
    return None


def unlike_the_prompt(row: Row) -> str | None:
    """Return the problem of a pair without a column `prompt`, where another column has a question that both
    texts lack.

    Taken as whole texts, chosen and rejected would be trained on without the question.
    """
    for name in ASKS:
        question = first_text(row.get(name))
        if question and not all(question in whole_text(row[side]) for side in ("chosen", "rejected")):
            return (
                f"column {name}: looks like the prompt, which chosen and rejected don't begin with; set "
                f"dataset_columns to {{{name}: prompt}}, or to {{{name}: unused}} if it isn't the prompt"
            )
    return None


def first_text(value: Any) -> str:
    """Return a text, or the first user message of a list, stripped; "" for anything else."""
    if isinstance(value, list):
        value = next((content(message) for message in value if role(message) in ("user", "human")), None)
    return value.strip() if isinstance(value, str) else ""


def whole_text(value: Any) -> str:
    """Return the whole text of a text or of a list of messages."""
    if isinstance(value, list):
        return "\n".join(content(message) for message in value)
    return value if isinstance(value, str) else ""


def role(message: Any) -> Any:
    return (message.get("role") or message.get("from")) if isinstance(message, dict) else None


def content(message: Any) -> str:
    """Return the text of an unvalidated message."""
    if not isinstance(message, dict):
        return ""
    text = message.get("content") or message.get("value") or ""
    if isinstance(text, list):
        text = "".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    return text if isinstance(text, str) else ""


# Texts and numbers that say yes or no, whoever writes them.
YES_OR_NO = (("True", "False"), ("true", "false"), ("TRUE", "FALSE"), ("yes", "no"), ("good", "bad"))


def label_of(value: Any) -> bool:
    """Return the label of a judged completion. Raises RowError for one that isn't true or false.

    The remedy that it prints names both labels, so that one that it doesn't know ends in an error when it is tried.
    """
    if isinstance(value, bool):
        return value
    if value is None:
        raise RowError(
            "column label: found nothing, expected true or false; leave out rows without a judgement", "label"
        )
    pair = next((pair for pair in YES_OR_NO if value in pair), ("good", "bad"))
    good, bad = ("1", "0") if isinstance(value, (int, float)) else map(repr, pair)
    known = isinstance(value, (int, float)) and value in (0, 1) or any(value in pair for pair in YES_OR_NO)
    yours = "" if known else ", with your own labels in it"
    raise RowError(
        f"column label: found {kind_of(value)}, expected true or false. You decide what counts as good: write the "
        f'column anew, for instance with datasets: map(lambda row: {{"label": {{{good}: True, {bad}: False}}'
        f'[row["label"]]}}){yours}',
        "label",
    )
