"""Converts requests to vLLM's sampling parameters, and its answers to completions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.api import Completion, DataError, Request, Sampling, end_tokens

if TYPE_CHECKING:
    from ft_host.api import Run


@dataclass(frozen=True)
class Job:
    """A prompt and its `vllm.SamplingParams`, as a dict."""

    prompt_ids: list[int]
    params: dict[str, Any]


def jobs_of(requests: list[Request], sampling: Sampling, run: Run, positions: int) -> list[Job]:
    """Return one job per request. `positions`: the most tokens of a prompt with its completion.

    Raises DataError for a prompt that is empty or leaves no room for an answer.
    """
    ends = end_tokens(run.policy.causal_lm, run.tokenizer, sampling)
    seed = sampling.seed
    if seed is None:
        import torch

        seed = int(torch.randint(2**31, ()))  # of torch's own random state, which checkpoints keep
    jobs = []
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        wanted = sampling.max_new_tokens
        if request.max_new_tokens is not None:
            wanted = min(wanted, request.max_new_tokens)
        limit = min(wanted, positions - length)
        if not length:
            raise DataError(f"prompt {index + 1} of {len(requests)} has no tokens; expected at least one")
        if wanted < 1:
            raise DataError(f"prompt {index + 1} of {len(requests)}: max_new_tokens is {wanted}; expected at least 1")
        if limit < 1:
            start = run.tokenizer.decode(request.prompt_ids[:30])
            raise DataError(
                f"prompt {index + 1} of {len(requests)} has {length} tokens, vLLM has room for {positions} "
                f"(max_model_len, or the model's positions), and a completion needs at least one: {start!r}…"
            )
        number = index * run.world_size + run.rank if request.number is None else request.number
        jobs.append(Job(request.prompt_ids, params_of(sampling, limit, seed_of(seed, number), ends)))
    return jobs


def params_of(sampling: Sampling, max_tokens: int, seed: int, ends: list[int]) -> dict[str, Any]:
    """Return the parameters of one request. Only `ends` end it: the model's own settings (temperature, end tokens) are
    ignored.
    """
    params = {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": ends,
        "ignore_eos": True,
        "logprobs": 0,  # of the sampled token only
        "detokenize": False,
    }
    if sampling.temperature > 0:
        params |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p, "seed": seed}
    return params


def seed_of(seed: int, number: int) -> int:
    """Return the seed of request `number` of a call with `seed`, independent of other requests: below 2**63, as vLLM
    requires.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "big") >> 1


def completion_of(
    token_ids: list[int], logprobs: list[float], finish_reason: str, spans: list[tuple[str, int, int]] | None
) -> Completion:
    """`spans`: (version, start, end) of the tokens that were sampled with one version of the weights. Where one isn't a
    number, vLLM has been given no version yet, and all are of the weights that it started with."""
    versions: list[int] = []
    for version, start, end in spans or []:
        if not version.isdigit():
            versions = []
            break
        versions += [int(version)] * (end - start)
    return Completion(token_ids=token_ids, logprobs=logprobs, finish_reason=finish_reason, versions=versions)
