"""Error messages for rows in no known format. Imports no torch."""

from __future__ import annotations

from ft_host import registry
from ft_host.types import Row
from ft_host.util.text import nearest

EXPECTED = (
    "text; messages; prompt and completion; input_ids (with labels, completion_mask or assistant_masks); instruction "
    "and output (Alpaca); conversations (ShareGPT)"
)

# What rows in no known format look like: the columns that identify it, what it is, and what to do. {preference} stands
# for the methods that take such rows.
LOOKS = (
    (
        {"chosen", "rejected"},
        "preference data: {preference}, or rename chosen with dataset_columns to train on the good ones only: to "
        "completion beside a prompt, else to messages or text",
    ),
    ({"chosen_ids", "rejected_ids"}, "tokenised preference data: {preference}"),
    ({"completions", "labels"}, "stepwise supervision (a process reward model's)"),
    ({"image"}, "data with images, which isn't supported yet"),
    ({"images"}, "data with images, which isn't supported yet"),
)
PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("problem", "solution"),
    ("user", "assistant"),
)
TALKS = ("conversation", "dialogue", "dialog", "chat", "turns", "chat_messages")
TEXTS = ("content", "document", "body", "article", "markdown", "code")


def use_methods(format: str) -> str:
    """Name the installed methods that take rows of a format: "use `ft-host train kto`"."""
    methods = registry.methods_for(format)
    if not methods:
        return f"use a method for {format} data"
    first, *others = [f"`ft-host train {methods[0]}`", *(f"`{name}`" for name in methods[1:])]
    if not others:
        return f"use {first}"
    return f"use {', '.join([first, *others[:-1]])} or {others[-1]}"


def likely_format(columns: list[str]) -> str | None:
    """What rows with these columns look like, and what to do about it."""
    names = set(columns)
    for given_away, what in LOOKS:
        if given_away <= names:
            return what.format(preference=use_methods("preference"))
    for asked, answered in PAIRS:
        if asked in names and answered in names:
            renames = {asked: "prompt", answered: "completion"}
            written = ", ".join(f"{theirs}: {ours}" for theirs, ours in renames.items() if theirs != ours)
            return f"prompts with their completions: set dataset_columns to {{{written}}}"
    for name in TALKS:
        if name in names:
            return f"conversations: set dataset_columns to {{{name}: messages}}"
    if "prompt" in names:
        return "prompts without completions, which methods that generate train on"
    for name in TEXTS:
        if name in names:
            return f"plain text: set dataset_columns to {{{name}: text}}"
    return None


def refusal(row: Row, text_field: str = "text") -> str:
    """Return a message with the columns found, what they look like, what was expected, and names that may
    be misspelt.
    """
    columns = list(row)
    message = f"found the columns {', '.join(columns) or 'none'}"
    looks = likely_format(columns)
    if looks:
        message += f"; they look like {looks}"
    near = []
    for name in ("text", "messages", "prompt", "completion", "input_ids", "conversations", "instruction", "output"):
        match = nearest(name, [column for column in columns if column != name], "{}")
        if match and name not in columns:
            near.append(f"{match} may be meant as {name}")
    if near and not looks:
        message += f"; {', '.join(near)}"
    own = "" if text_field == "text" else f" (dataset_text_field is {text_field})"
    return f"{message}; expected {EXPECTED}{own}"
