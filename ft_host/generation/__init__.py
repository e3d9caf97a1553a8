"""What goes into a generation backend and comes out of it. The engines are beside this file or in packages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None  # of the whole call; None draws one from torch's random state


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt as token ids."""

    prompt_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What was sampled after a prompt: token ids (the stop token included), the log-prob of each under the
    distribution that sampled it (the model's own, if greedy), and why it ended: "stop" (an end token) or "length"."""

    token_ids: list[int]
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str
