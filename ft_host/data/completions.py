"""Completions of preference rows as tokens, each after the prompt, and their cut at `max_length`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host.data.messages import content_of
from ft_host.data.prefill import continues, whole_talks
from ft_host.data.tokens import chat_ids, conversation, encode, ends_in_eos_only, shared, warn_boundary, with_eos
from ft_host.types import Drop, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig

Message = dict[str, Any]
Completion = str | list[Message] | list[int]


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
        given = [row[name] for name in names]
        asked = conversation(tokenizer, prompt, row, continues=continues(prompt, given, row))
        alone = chat_ids(asked, ask=True) if prompt else []
        wholes = [chat_ids(conversation(tokenizer, talk, row)) for talk in whole_talks(prompt, given, row)]
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
