"""What goes into a generation backend and comes out of it. The engines are beside this file or in packages."""

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
    seed: int | None = None  # of the whole call; None draws one from torch's random state
    role: str = "policy"  # which of the run's models answers: the policy, or a companion such as "teacher"
    # What ends a completion, beside what the model's generation config names. None: the EOS of the run's tokenizer.
    stop_token_ids: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt as token ids. Requests with equal prompts may share the work that the prompt takes.

    `number` tells the requests of all ranks apart: with the seed of the call it decides the noise that is sampled with,
    whatever the batches and the ranks. None: as if the requests of all ranks had been dealt out in turn.
    """

    prompt_ids: list[int]
    number: int | None = None
    max_new_tokens: int | None = None  # fewer than the call's, where a conversation has used some up already


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Token ids of which those from `start` on are to be scored, each given all before it."""

    token_ids: list[int]
    start: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """For each scored token of a sequence the likeliest tokens in its place, likeliest first, and their log-probs."""

    token_ids: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What came after a prompt: token ids (the stop token included), the log-prob of each under the distribution that
    sampled it (the model's own, if greedy; at every temperature the one that `Sampling` describes), and why it ended:
    "stop" (an end token) or "length".

    Of a conversation with tools it is all turns in one: `sampled` then tells what the model said (True) from what tools
    said, whose log-probs are 0. Empty: everything was sampled. `versions` is the weight version of each token, as
    `ft_sync_weights` was given it; empty: all are of the weights when generation began.
    """

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str
    sampled: list[bool] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    turns: int = 1
    prompt_ids: list[int] = field(default_factory=list)  # where it isn't the request's: an environment added to it
    messages: list[dict] = field(default_factory=list)  # the turns of a conversation with tools
