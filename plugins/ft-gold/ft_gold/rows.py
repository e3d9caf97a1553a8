"""Rows of a completion, tokenized for the student and for the teacher."""

from __future__ import annotations

from typing import Any

from ft_gold.tokens import Meeting, as_teacher_reads
from ft_host.api import Completion, completion_row, row_from_tokens

Row = dict[str, Any]


def is_chat(prompt: Row) -> bool:
    return isinstance(prompt["prompt"], list)


def taught(row: Row, met: Meeting, config: Any, chat: bool, said: list[int] | None = None) -> Row:
    """Return a row with both sequences; its length is that of the longer one, since both must fit."""
    row = as_teacher_reads(row, met, config, chat, said)
    longer = max(len(row["teacher_prompt_ids"]) + len(row["teacher_completion_ids"]) - row["length"], 0)
    return row | {"length": row["length"] + longer, "shared": row["shared"] + longer}


def policys_row(row: Row, completion: Completion, met: Meeting | None, config: Any) -> Row:
    found = completion_row(row, completion) | {"on_policy": True}
    if met is None:
        return found
    return taught(found | {"teacher_prompt_ids": row["teacher_prompt_ids"]}, met, config, is_chat(row))


def teachers_row(row: Row, completion: Completion, met: Meeting | None, config: Any) -> Row:
    """Return the teacher's completion, tokenized for the student."""
    if met is None:
        return completion_row(row, completion) | {"on_policy": False}
    ended = completion.finish_reason == "stop"
    said = completion.token_ids[:-1] if ended else completion.token_ids
    end = (met.ours.turn_end if is_chat(row) else met.ours.end) if ended else None
    text = met.theirs.spelled(said)[0] if config.use_extended_uld else met.theirs.tokenizer.decode(said)
    ids = [*met.ours.encode(text), *([] if end is None else [end])][: config.max_completion_length]
    # a row must have a token; one that isn't trained on, where there is nothing that the student could read
    found = row_from_tokens(row["prompt_ids"], ids or [met.ours.end], [True] * len(ids) or [False])
    found |= {"group": row["group"], "on_policy": False}
    return taught(found | {"teacher_prompt_ids": row["teacher_prompt_ids"]}, met, config, is_chat(row), said)


def asked_as_teacher(row: Row) -> Row:
    return row | {
        "prompt_ids": row["teacher_prompt_ids"],
        "completion_ids": row["teacher_completion_ids"],
        "sampled": row["teacher_sampled"],
    }


def introduction(met: Meeting | None, config: Any) -> str:
    """Say in words how the two are compared."""
    if met is None:
        return "the teacher reads the student's tokens: they are compared token by token, by the plain divergence"
    by = "aligned by their bytes" if config.use_extended_uld else "one after the other"
    if not config.uld_use_hybrid_loss:
        return f"the teacher has another tokenizer: tokens are taken {by}, and compared by their sorted probabilities"
    count, size = len(met.shared[0]), len(met.theirs.pieces)
    return (
        f"the teacher has another tokenizer: tokens are taken {by}; {count:,} of its {size:,} tokens are also the"
        " student's, and are compared by the divergence, the others by their sorted probabilities"
    )
