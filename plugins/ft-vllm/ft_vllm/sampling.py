"""Converts requests to vLLM's sampling parameters, and its answers to completions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.api import DataError, Request, Sampling, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ft_host.api import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """A prompt and its `vllm.SamplingParams`, as a dict. The noise is that of `seed`, `number` and `offset`, the tokens
    of the completion that the prompt ends with."""

    prompt_ids: list[int]
    params: dict[str, Any]
    seed: int
    number: int
    offset: int = 0

    def body(self, done: list[int]) -> dict[str, Any]:
        """Return what is asked of vLLM where `done` has been sampled."""
        params = self.params | {"max_tokens": self.params["max_tokens"] - len(done)}
        if params["temperature"] > 0:
            params["seed"] = seed_of(self.seed, self.number, self.offset + len(done))
        return {"token_ids": self.prompt_ids + done, "sampling_params": params}


def jobs_of(requests: list[Request], sampling: Sampling, run: Run, positions: int) -> list[Job]:
    """Return one job per request. `positions`: the most tokens of a prompt with its completion.

    Raises DataError for a prompt that is empty or leaves no room for an answer.
    """
    ends = end_tokens(run.policy.causal_lm, run.tokenizer, sampling)
    seed = drawn() if sampling.seed is None else sampling.seed
    jobs = []
    for index, request in enumerate(requests):
        where = f"prompt {index + 1} of {len(requests)}"
        number = index * run.world_size + run.rank if request.number is None else request.number
        jobs.append(job_of(request, sampling, ends, seed, number, positions, where, run.tokenizer))
    return jobs


def drawn() -> int:
    """A seed of torch's own random state, which checkpoints keep."""
    import torch

    return int(torch.randint(2**31, ()))


def job_of(
    request: Request,
    sampling: Sampling,
    ends: list[int],
    seed: int,
    number: int,
    positions: int,
    where: str,
    tokenizer: PreTrainedTokenizerBase,
) -> Job:
    """Return the job of one request, which `where` names. Raises DataError as `jobs_of` does."""
    length = len(request.prompt_ids)
    wanted = sampling.max_new_tokens
    if request.max_new_tokens is not None:
        wanted = min(wanted, request.max_new_tokens)
    limit = min(wanted, positions - length)
    if not length:
        raise DataError(f"{where} has no tokens; expected at least one")
    if wanted < 1:
        raise DataError(f"{where}: max_new_tokens is {wanted}; expected at least 1")
    if limit < 1:
        start = tokenizer.decode(request.prompt_ids[:30])
        raise DataError(
            f"{where} has {length} tokens, vLLM has room for {positions} (max_model_len, or the model's positions), and"
            f" a completion needs at least one: {start!r}…"
        )
    params = params_of(sampling, limit, seed_of(seed, number, request.offset), ends)
    return Job(prompt_ids=request.prompt_ids, params=params, seed=seed, number=number, offset=request.offset)


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


def seed_of(seed: int, number: int, offset: int = 0) -> int:
    """Return the seed of request `number` of a call with `seed`, independent of other requests: below 2**63, as vLLM
    requires. A completion that goes on after `offset` tokens has noise of its own from there on, since vLLM's begins
    anew with each request.
    """
    name = f"{seed} {number} {offset}" if offset else f"{seed} {number}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def versions_of(spans: list[tuple[str, int, int]] | None) -> list[int]:
    """The version of each token, from (version, start, end) of those that were sampled with one version of the weights.
    None where a version isn't a number: vLLM has been given none yet, and all are of the weights that it started with.
    """
    versions: list[int] = []
    for version, start, end in spans or []:
        if not version.isdigit():
            return []
        versions += [int(version)] * (end - start)
    return versions
