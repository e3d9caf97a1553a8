"""What a row says, whether its columns are texts or lists of messages, and how it says something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Texts:
    """What some faults need beside the rows: the tokenizer of the model, and the other rows of the run."""

    tokenizer: Any
    train: list[Row]


def said(value: str | list[dict]) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


def saying(value: str | list[dict], text: str) -> str | list[dict]:
    return text if isinstance(value, str) else [*value[:-1], value[-1] | {"content": text}]


def changed(row: Row, **texts: str) -> Row:
    """The row whose columns say these texts instead."""
    return row | {name: saying(row[name], text) for name, text in texts.items()}


def as_tokens(row: Row, tokenizer: Any) -> Row:
    """A prompt and its completion as tokens that are supervised on the completion and EOS."""
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        completion = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    else:
        plain = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **plain)
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], **plain)
        completion = whole[len(prompt) :]
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion}
