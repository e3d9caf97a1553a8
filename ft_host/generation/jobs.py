"""Requests on their way through a model: what each is to be given, and what it has got."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ft_host.data.templates import added_ends
from ft_host.errors import DataError
from ft_host.generation import Completion, Request, Sampling
from ft_host.generation.sampling import noise_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """A request in decoding: `index` is its place in the call or its key in the engine, `seed` and `number` decide its
    noise, `limit` is of new tokens, `ends` are the tokens that end it.

    `limit` is lower than requested where the model's positions end. `offset`: tokens at the end of the prompt that are
    of the completion, sampled before.
    """

    index: int
    prompt_ids: list[int]
    number: int
    limit: int
    seed: int = 0
    ends: tuple[int, ...] = ()
    offset: int = 0

    def noise(self) -> np.ndarray:
        """Return (limit,) float32: that of its new tokens."""
        return noise_of(self.seed, self.number, self.offset + self.limit)[self.offset :]


@dataclass
class DecodedRow:
    job: Job
    noise: np.ndarray | None = None  # (limit,); None where none is needed
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    def take(self, tokens: list[int], logprobs: list[float]) -> None:
        """Add tokens up to the first that ends the row: the batch goes on until the tokens are read."""
        for token, logprob in zip(tokens, logprobs, strict=True):
            if not self.ended:
                self.tokens.append(token)
                self.logprobs.append(logprob)
                self.ended = token in self.job.ends or len(self.tokens) == self.job.limit

    @property
    def columns(self) -> int:
        """Those of its keys and values: its last token has none yet."""
        return len(self.job.prompt_ids) + len(self.tokens) - 1

    @property
    def finish_reason(self) -> str:
        return "stop" if self.tokens[-1] in self.job.ends else "length"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a model and a `Sampling` set for each request."""

    max_new_tokens: int
    seed: int
    ends: tuple[int, ...]
    max_positions: int | None  # of the model; None: it has no limit
    tokenizer: PreTrainedTokenizerBase

    def job(self, request: Request, index: int, number: int, name: str) -> Job:
        """Return the job of a request, which refusals call `name`. Raises DataError for a prompt that is empty or
        leaves the model no position to generate at."""
        length, most = len(request.prompt_ids), self.max_positions
        if not length:
            raise DataError(f"{name} has no tokens; expected at least one")
        if not 0 <= request.offset < length:
            raise DataError(
                f"{name} has {length} tokens, and {request.offset} of them (offset) are said to be of its completion; "
                f"expected 0 to {length - 1}"
            )
        limit = self.max_new_tokens
        if request.max_new_tokens is not None:
            limit = min(limit, request.max_new_tokens)
        if limit < 1:
            raise DataError(f"{name}: max_new_tokens is {limit}; expected at least 1")
        room = limit if most is None else most - length
        if room < 1:
            start = self.tokenizer.decode(request.prompt_ids[:30])
            raise DataError(
                f"{name} has {length} tokens, the model has {most} positions (max_position_embeddings), and a "
                f"completion needs at least one: {start!r}…"
            )
        return Job(index, request.prompt_ids, number, min(limit, room), self.seed, self.ends, request.offset)


def jobs_of(requests: list[Request], terms: Terms, first: int = 0, stride: int = 1) -> list[Job]:
    """Return one job for each request. Jobs without a number get `first`, `first + stride`, and so on. Raises what
    `Terms.job` does."""
    return [
        terms.job(
            request,
            index,
            first + stride * index if request.number is None else request.number,
            f"prompt {index + 1} of {len(requests)}",
        )
        for index, request in enumerate(requests)
    ]


def positions_of(model: PreTrainedModel) -> int | None:
    """Return the positions that a model has; None where it has no limit."""
    # Not every architecture has the field, and some have it under another name that only attribute access maps.
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> list[int]:
    """Return the tokens that end a completion.

    These are the tokenizer's EOS with the marks that the host adds to the ends of conversations, unless `sampling` has
    others, and those of the model's generation config.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    own = [tokenizer.eos_token_id, *added_ends(tokenizer)]
    stop = own if sampling.stop_token_ids is None else sampling.stop_token_ids
    return sorted({token for token in [*stop, *ids] if token is not None})


def completion_of(row: DecodedRow) -> Completion:
    return Completion(token_ids=row.tokens, logprobs=row.logprobs, finish_reason=row.finish_reason)
