"""The input and output types of generation backends. The engines are in this folder or in packages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # for the whole call; None draws one from torch's random state
    role: str = "policy"  # the model that generates: the policy, or an auxiliary model such as "teacher"
    # Stop tokens, in addition to those of the model's generation config. None: the EOS of the run's tokenizer.
    stop_token_ids: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt as token ids. Requests with equal prompts may share the prefill.

    `number` identifies a request across all ranks. With the seed of the call it decides the sampling noise, independent
    of batches and ranks. None: numbered as if the requests of all ranks had been dealt out in turn.
    """

    prompt_ids: list[int]
    number: int | None = None
    max_new_tokens: int | None = None  # fewer than in `Sampling` where earlier turns used some of them


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Token ids; those from `start` on are scored, each given all tokens before it."""

    token_ids: list[int]
    start: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """For each scored token of a sequence, the likeliest tokens at its position, likeliest first, and their
    log-probs.
    """

    token_ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The result for a prompt: token ids (with the stop token), log-probs, and the reason why it ended.

    The log-prob of each token is under the distribution that sampled it, which `Sampling` describes (the model's own,
    if greedy). The reason is "stop" (an end token) or "length".

    A conversation with tools is one completion with all its turns. `sampled` is then True for tokens that the model
    sampled, and False for tool results, whose log-probs are 0. Empty: everything was sampled. `versions` is the weight
    version of each token, as passed to `ft_sync_weights`; empty: all are of the weights when generation began.
    """

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    turns: int = 1
    prompt_ids: list[int] = field(
        default_factory=list
    )  # if it differs from the request's, since an environment extended it
    messages: list[dict] = field(default_factory=list)  # the turns of a conversation with tools
