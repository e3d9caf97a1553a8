"""The backend `transformers`: generates with the policy itself, by the decoding loop of decode.py.

Models that this loop can't run go through `model.generate`, one batch of prompts at a time, with the same results:
models with other state than keys and values, and sharded models, where all ranks must run the same number of steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ft_host.data.templates import added_ends
from ft_host.distributed.processes import is_sharded
from ft_host.errors import DataError
from ft_host.generation import Completion, Request, Sampling
from ft_host.generation.decode import DecodedRow, Job, can_decode, decode
from ft_host.generation.sampling import noise_of, sample_token, tokens_seen
from ft_host.hooks import hookimpl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ft_host.models.policy import Policy
    from ft_host.run import Run


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    with answering(run, sampling.role) as policy:
        return complete(requests, sampling, run, policy)


@contextlib.contextmanager
def answering(run: Run, role: str) -> Iterator[Policy]:
    """Give the model of that role. All ranks must enter it."""
    if role == "policy":
        yield run.policy
        return
    with run.models[role].answering() as policy:
        yield policy


def complete(requests: list[Request], sampling: Sampling, run: Run, policy: Policy) -> list[Completion]:
    model, tokenizer = policy.causal_lm, run.tokenizer
    ends = end_tokens(model, tokenizer, sampling)
    # Not every architecture has a limit, and some have it under another name that only attribute access
    # maps.
    max_positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # Requests without a number are numbered as if dealt out to ranks in turn: no two share their noise, and rows that
    # are dealt out in turn get the same noise for any number of ranks.
    first, stride = run.rank, run.world_size
    jobs = jobs_of(requests, sampling.max_new_tokens, max_positions, tokenizer, first, stride)
    seed = sampling.seed
    if seed is None:
        seed = int(torch.randint(2**31, ()))  # of torch's own random state, which checkpoints keep
    sharded = is_sharded(run.config, run.world_size)
    with generating(run, policy):
        if jobs and not sharded and can_decode(model):
            rows = list(decode(model, jobs, sampling, seed, ends, run.config.decode_batch_size))
        else:
            batches = batches_of(jobs, run.config.decode_batch_size, max_positions)
            rows = list(generate_batches(batches, sampling, seed, ends, run, policy, sharded))
    completions = {row.job.index: completion_of(row, ends) for row in rows}
    return [completions[index] for index in range(len(requests))]


def jobs_of(
    requests: list[Request],
    max_new_tokens: int,
    max_positions: int | None,
    tokenizer: PreTrainedTokenizerBase,
    first: int = 0,
    stride: int = 1,
) -> list[Job]:
    """Return one job for each request. Jobs without a number get `first`, `first + stride`, and so on.

    Raises DataError for a prompt that is empty or leaves the model no position to generate at.
    """
    jobs = []
    for index, request in enumerate(requests):
        length = len(request.prompt_ids)
        if not length:
            raise DataError(f"prompt {index + 1} of {len(requests)} has no tokens; expected at least one")
        limit = max_new_tokens if request.max_new_tokens is None else min(max_new_tokens, request.max_new_tokens)
        if limit < 1:
            raise DataError(f"prompt {index + 1} of {len(requests)}: max_new_tokens is {limit}; expected at least 1")
        room = limit if max_positions is None else max_positions - length
        if room < 1:
            start = tokenizer.decode(request.prompt_ids[:30])
            raise DataError(
                f"prompt {index + 1} of {len(requests)} has {length} tokens, the model has {max_positions} positions "
                f"(max_position_embeddings), and a completion needs at least one: {start!r}…"
            )
        number = first + stride * index if request.number is None else request.number
        jobs.append(Job(index, request.prompt_ids, number, min(limit, room)))
    return jobs


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


def completion_of(row: DecodedRow, ends: list[int]) -> Completion:
    reason = "stop" if row.tokens[-1] in ends else "length"
    return Completion(token_ids=row.tokens, logprobs=row.logprobs, finish_reason=reason)


@contextlib.contextmanager
def generating(run: Run, policy: Policy) -> Iterator[None]:
    """Put a model in generation mode: without dropout or checkpointing, and without its generation defaults.

    transformers would merge the model's own temperature, top_k or repetition penalty into ours.
    """
    model = policy.causal_lm
    was_training, defaults = policy.training, model.generation_config
    policy.eval()
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), run.accelerator.autocast():
            yield
    finally:
        model.generation_config = defaults
        policy.train(was_training)


# ---------------------------------------------------------------- through model.generate


class Picker(LogitsProcessor):
    """Chooses each token, records it with its log-prob, and leaves `generate` no other choice."""

    def __init__(self, sampling: Sampling, noise: torch.Tensor, seen: torch.Tensor | None):
        self.sampling = sampling
        self.noise = noise  # (B, limit)
        self.seen = seen  # (B, V); not the input of `generate`, which includes the padding of short prompts
        self.tokens: list[torch.Tensor] = []  # (B,) of each step
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # transformers may run one step too many before it stops (it reads a flag late); that step is cut
        step = min(len(self.tokens), self.noise.shape[1] - 1)
        token, logp = sample_token(scores, self.sampling, self.noise[:, step], self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        self.tokens.append(token)
        self.logprobs.append(logp)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0)


def batches_of(jobs: list[Job], size: int, max_positions: int | None) -> list[list[Job]]:
    """Return batches of at most `size`, longest prompts first, so that padding is low and memory runs out early or
    never.

    A batch runs to its highest limit: it holds no job for which the model has too few positions.
    """
    batches: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: (-len(job.prompt_ids), job.index)):
        batch = batches[-1] if batches else []
        limit = max([job.limit, *(other.limit for other in batch)])
        longest = max(len(other.prompt_ids) for other in [job, *batch])
        if not batch or len(batch) == size or (max_positions is not None and longest + limit > max_positions):
            batches.append(batch := [])
        batch.append(job)
    return batches


def generate_batches(
    batches: list[list[Job]], sampling: Sampling, seed: int, ends: list[int], run: Run, policy: Policy, sharded: bool
) -> Iterator[DecodedRow]:
    """Complete batches that stay as they are until their last row has ended."""
    idle = 0
    if sharded:
        # Each forward gathers weights from all ranks: all run as many batches as the rank with the most.
        idle = max(run.gather(len(batches))) - len(batches)
    for batch in batches:
        yield from run_batch(batch, sampling, seed, ends, run, policy, sharded)
    for _ in range(idle):
        nothing = Job(-1, [ends[0] if ends else 0], 0, 1)
        list(run_batch([nothing], sampling, seed, ends, run, policy, sharded))


def run_batch(
    batch: list[Job], sampling: Sampling, seed: int, ends: list[int], run: Run, policy: Policy, sharded: bool
) -> Iterator[DecodedRow]:
    """Complete the prompts of one batch, padded on the left."""
    limit = max(job.limit for job in batch)
    width = max(len(job.prompt_ids) for job in batch)
    pad = run.tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0  # masked out: any token works
    input_ids = torch.tensor([[pad] * (width - len(job.prompt_ids)) + job.prompt_ids for job in batch])
    mask = torch.tensor([[0] * (width - len(job.prompt_ids)) + [1] * len(job.prompt_ids) for job in batch])
    noise, seen = torch.zeros(len(batch), limit), None
    if sampling.temperature:
        for row, job in enumerate(batch):
            noise[row, : job.limit] = torch.from_numpy(noise_of(seed, job.number, job.limit))
    if sampling.repetition_penalty != 1:
        vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
        seen = tokens_seen([job.prompt_ids for job in batch], vocabulary, run.device)
    picker = Picker(sampling, noise.to(run.device), seen)
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
        "synced_gpus": sharded,
    }
    call_generate(policy, arguments, sharded=sharded)
    tokens = torch.stack(picker.tokens, 1)[:, :limit].tolist()
    logprobs = torch.stack(picker.logprobs, 1)[:, :limit].tolist()
    for job, *sampled in zip(batch, tokens, logprobs, strict=True):
        row = DecodedRow(job)
        row.take(*sampled, ends)
        yield row


def call_generate(policy: Policy, arguments: dict[str, Any], *, sharded: bool) -> None:
    """Call `model.generate` so that a sharded model gathers the weights of its root module (embeddings, head)."""
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
