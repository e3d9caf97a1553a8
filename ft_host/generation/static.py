"""Generation through `model.generate`, one batch of prompts at a time, for models that the loop of decode.py can't run:
models with other state than keys and values, and sharded models, where all ranks must run the same number of steps.

The results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ft_host.generation import Sampling
from ft_host.generation.jobs import DecodedRow, Job
from ft_host.generation.looks import Sampled, read
from ft_host.generation.prompts import without_routing
from ft_host.generation.sampling import sample_token, tokens_seen
from ft_host.util.transfer import to_device

if TYPE_CHECKING:
    from ft_host.models.policy import Policy
    from ft_host.run import Run


class Picker(LogitsProcessor):
    """Chooses each token, records it with its log-prob, and leaves `generate` no other choice."""

    def __init__(self, sampling: Sampling, noise: torch.Tensor, seen: torch.Tensor | None):
        self.sampling = sampling
        self.noise = noise  # (B, limit)
        self.seen = seen  # (B, V); not the input of `generate`, which includes the padding of short prompts
        self.steps: list[Sampled] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # transformers may run one step too many before it stops (it reads a flag late); that step is cut
        step = min(len(self.steps), self.noise.shape[1] - 1)
        token, logp = sample_token(scores, self.sampling, self.noise[:, step], self.seen)
        if self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        self.steps.append((token, logp))
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
    batches: list[list[Job]], sampling: Sampling, ends: tuple[int, ...], run: Run, policy: Policy, sharded: bool
) -> Iterator[DecodedRow]:
    """Complete batches that stay as they are until their last row has ended."""
    idle = 0
    if sharded:
        # Each forward gathers weights from all ranks: all run as many batches as the rank with the most.
        idle = max(run.gather(len(batches))) - len(batches)
    for batch in batches:
        yield from run_batch(batch, sampling, run, policy, sharded)
    for _ in range(idle):
        nothing = Job(-1, [ends[0] if ends else 0], 0, 1, ends=ends)
        list(run_batch([nothing], sampling, run, policy, sharded))


def run_batch(batch: list[Job], sampling: Sampling, run: Run, policy: Policy, sharded: bool) -> Iterator[DecodedRow]:
    """Complete the prompts of one batch, padded on the left. All end with the same tokens."""
    limit, ends = max(job.limit for job in batch), batch[0].ends
    width = max(len(job.prompt_ids) for job in batch)
    pad = run.tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0  # masked out: any token works
    ids = torch.tensor([[pad] * (width - len(job.prompt_ids)) + job.prompt_ids for job in batch])
    mask = torch.tensor([[0] * (width - len(job.prompt_ids)) + [1] * len(job.prompt_ids) for job in batch])
    noise, seen = torch.zeros(len(batch), limit), None
    if sampling.temperature:
        for row, job in enumerate(batch):
            noise[row, : job.limit] = torch.from_numpy(job.noise())
    ids, mask, noise = to_device([ids, mask, noise], run.device)
    if sampling.repetition_penalty != 1:
        vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
        seen = tokens_seen(ids, mask, vocabulary)
    picker = Picker(sampling, noise, seen)
    arguments = {
        "input_ids": ids,
        "attention_mask": mask,
        "generation_config": GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,  # `picker` has chosen already
            num_beams=1,
            use_cache=True,
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
        ),
        "logits_processor": LogitsProcessorList([picker]),
        "synced_gpus": sharded,
        **without_routing(policy.causal_lm),
    }
    call_generate(policy, arguments, sharded=sharded)
    for job, sampled in zip(batch, read(picker.steps[:limit]), strict=True):
        row = DecodedRow(job)
        row.take(*sampled)
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
