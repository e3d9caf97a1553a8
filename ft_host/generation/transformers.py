"""The backend `transformers`: the policy itself, through `model.generate`, a batch of prompts at a time.

How a token is chosen is written out here (`pick`) rather than left to `generate`, for three reasons: the noise is then
a function of the seed and the request alone, whatever the batches and the ranks; the random state of the training is
left alone; and only one [batch, vocabulary] tensor is alive at a time, where `output_scores` keeps one for each token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ft_host import hookimpl
from ft_host.errors import DataError
from ft_host.generation import Completion, Request, Sampling
from ft_host.processes import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ft_host.models.policy import Policy
    from ft_host.run import Run


# ---------------------------------------------------------------- choosing a token


def pick(logits: torch.Tensor, sampling: Sampling, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, V) float32 logits and (B,) uniform noise in [0, 1) to (B,) tokens and (B,) log-probs.

    The log-prob is of the distribution that was sampled: after temperature, top_k and top_p. Greedy (temperature 0) has
    none worth the name; it gives the model's own, at temperature 1.
    """
    if sampling.temperature == 0:
        token = logits.argmax(-1)
        return token, _at(logits.log_softmax(-1), token)
    logp = (logits / sampling.temperature).log_softmax(-1)
    if 0 < sampling.top_k < logp.shape[-1]:
        least = logp.topk(sampling.top_k).values[:, -1:]
        logp = logp.masked_fill(logp < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ordered, order = logp.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # what the likelier tokens hold: the first always stays
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logp = logp.masked_fill(cut, -torch.inf).log_softmax(-1)
    upto = logp.exp().cumsum(-1)
    token = torch.searchsorted(upto, noise[:, None] * upto[:, -1:], right=True)[:, 0]
    # noise just below 1 may round up to the total and point past the end
    token = torch.where(token < logp.shape[-1], token, logp.argmax(-1))
    return token, _at(logp, token)


def _at(values: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, token[:, None])[:, 0]


class Picker(LogitsProcessor):
    """Chooses each token, remembers it with its log-prob, and leaves `generate` no other choice."""

    def __init__(self, sampling: Sampling, noise: torch.Tensor):
        self.sampling = sampling
        self.noise = noise  # (B, max_new_tokens)
        self.tokens: list[torch.Tensor] = []  # (B,) of each step
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # transformers may look one step further than asked for before it stops (it reads a flag late); that one is cut
        step = min(len(self.tokens), self.noise.shape[1] - 1)
        token, logp = pick(scores, self.sampling, self.noise[:, step])
        self.tokens.append(token)
        self.logprobs.append(logp)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)


def noise_of(seed: int, number: int, length: int) -> np.ndarray:
    """(length,) float32 in [0, 1): the noise of request `number` of a call, whoever else is in it."""
    return np.random.default_rng([seed, number]).random(length, dtype=np.float32)


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Job:
    """A request in its place: `index` in the call, `limit` of new tokens where the model's positions end earlier."""

    index: int
    prompt_ids: list[int]
    limit: int


def jobs_of(
    requests: list[Request], max_new_tokens: int, max_positions: int | None, tokenizer: PreTrainedTokenizerBase
) -> list[Job]:
    """One job a request. Raises DataError for a prompt that is empty or leaves the model no position to answer in."""
    jobs = []
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        limit = max_new_tokens if max_positions is None else min(max_new_tokens, max_positions - length)
        if not length:
            raise DataError(f"prompt {index + 1} of {len(requests)} has no tokens: there is nothing to complete")
        if limit < 1:
            start = tokenizer.decode(request.prompt_ids[:30])
            raise DataError(
                f"prompt {index + 1} of {len(requests)} has {length} tokens, the model has {max_positions} positions "
                f"(max_position_embeddings), and a completion needs at least one: {start!r}…"
            )
        jobs.append(Job(index, request.prompt_ids, limit))
    return jobs


def batches_of(jobs: list[Job], size: int) -> list[list[Job]]:
    """Batches of at most `size`, longest prompts first, so that little is padded and memory runs out early or never.

    Jobs of different limits don't share a batch: the one with fewer positions left would be asked for more.
    """
    batches: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: (-len(job.prompt_ids), job.index)):
        if not batches or len(batches[-1]) == size or batches[-1][0].limit != job.limit:
            batches.append([])
        batches[-1].append(job)
    return batches


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a completion: the tokenizer's EOS, and what the model's generation config adds to it."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *ids] if token is not None})


# ---------------------------------------------------------------- running the model


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    model, tokenizer = run.policy.causal_lm, run.tokenizer
    ends = end_tokens(model, tokenizer)
    # Not every architecture ends somewhere, and some keep the number under another name that only attribute access maps.
    max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    jobs = jobs_of(requests, sampling.max_new_tokens, max_positions, tokenizer)
    batches = batches_of(jobs, run.config.decode_batch_size)
    seed = sampling.seed
    if seed is None:
        seed = int(torch.randint(2**31, ()))  # of torch's own random state, which checkpoints keep
    if is_sharded(run.config, run.world_size):
        # Each forward gathers weights from all ranks: all run as many batches as the one that has most.
        idle = [Job(-1, [ends[0] if ends else 0], 1)]
        batches += [idle] * (max(run.gather(len(batches))) - len(batches))
    completions: dict[int, Completion] = {}
    with generating(run, model):
        for batch in batches:
            # Requests are counted over ranks as if dealt out in turn, so that no two share their noise, and rows that
            # are dealt out in turn get the same noise whatever the number of ranks.
            numbers = [job.index * run.world_size + run.rank for job in batch if job.index >= 0]
            for job, completion in zip(batch, run_batch(batch, numbers, sampling, seed, ends, run), strict=True):
                completions[job.index] = completion
    return [completions[index] for index in range(len(requests))]


def run_batch(
    batch: list[Job], numbers: list[int], sampling: Sampling, seed: int, ends: list[int], run: Run
) -> list[Completion]:
    """Complete the prompts of one batch, padded on the left."""
    limit = batch[0].limit
    width = max(len(job.prompt_ids) for job in batch)
    pad = run.tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0  # masked out: any will do
    input_ids = torch.tensor([[pad] * (width - len(job.prompt_ids)) + job.prompt_ids for job in batch])
    mask = torch.tensor([[0] * (width - len(job.prompt_ids)) + [1] * len(job.prompt_ids) for job in batch])
    noise = torch.zeros(len(batch), limit)
    if sampling.temperature:
        for row, number in enumerate(numbers):
            noise[row] = torch.from_numpy(noise_of(seed, number, limit))
    picker = Picker(sampling, noise.to(run.device))
    arguments = {
        "input_ids": input_ids.to(run.device),
        "attention_mask": mask.to(run.device),
        "generation_config": GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,  # `picker` has chosen already
            num_beams=1,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=pad,
        ),
        "logits_processor": LogitsProcessorList([picker]),
        "synced_gpus": is_sharded(run.config, run.world_size),
    }
    call_generate(run.policy, arguments, sharded=is_sharded(run.config, run.world_size))
    tokens = torch.stack(picker.tokens, 1)[:, :limit].tolist()
    logprobs = torch.stack(picker.logprobs, 1)[:, :limit].tolist()
    return [completion_of(*row, ends) for row in zip(tokens, logprobs, strict=True)]


def completion_of(tokens: list[int], logprobs: list[float], ends: list[int]) -> Completion:
    """What comes before and with the first end token: a batch goes on until its last row has ended."""
    for index, token in enumerate(tokens):
        if token in ends:
            return Completion(token_ids=tokens[: index + 1], logprobs=logprobs[: index + 1], finish_reason="stop")
    return Completion(token_ids=tokens, logprobs=logprobs, finish_reason="length")


@contextlib.contextmanager
def generating(run: Run, model: PreTrainedModel) -> Iterator[None]:
    """The policy as generation needs it: without dropout or checkpointing, and without the defaults that came with the
    model (its own temperature, top_k, repetition penalty), which transformers would merge into ours."""
    was_training, defaults = run.policy.training, model.generation_config
    run.policy.eval()
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), run.accelerator.autocast():
            yield
    finally:
        model.generation_config = defaults
        run.policy.train(was_training)


def call_generate(policy: Policy, arguments: dict[str, Any], *, sharded: bool) -> None:
    """`model.generate`, such that a sharded model gathers the weights that belong to its root (embeddings, head)."""
    if not sharded:
        policy.causal_lm.generate(**arguments)
        return
    from torch.distributed.fsdp import register_fsdp_forward_method

    policy.generate = policy.causal_lm.generate
    register_fsdp_forward_method(policy, "generate")
    try:
        policy.generate(**arguments)
    finally:
        del policy.generate
