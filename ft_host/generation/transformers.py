"""The backend `transformers`: generates with the policy itself, by the decoding loop of loop.py, or through
`model.generate` where that can't run the model (static.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ft_host.distributed.processes import is_sharded
from ft_host.generation import Completion, Request, Sampling
from ft_host.generation.engine import TransformersEngine
from ft_host.generation.jobs import Terms, completion_of, end_tokens, jobs_of, positions_of
from ft_host.generation.loop import decode
from ft_host.generation.place import answering, generating, rows_of, tell_way
from ft_host.generation.prompts import can_decode
from ft_host.generation.static import batches_of, generate_batches
from ft_host.hooks import hookimpl

if TYPE_CHECKING:
    from ft_host.models.policy import Policy
    from ft_host.run import EnginePlace, Run


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    with answering(run, sampling.role) as policy:
        return complete(requests, sampling, run, policy)


@hookimpl
def ft_engine(place: EnginePlace) -> TransformersEngine:
    return TransformersEngine(place)


def complete(requests: list[Request], sampling: Sampling, run: Run, policy: Policy) -> list[Completion]:
    model = policy.causal_lm
    seed = sampling.seed
    if seed is None:
        seed = int(torch.randint(2**31, ()))  # of torch's own random state, which checkpoints keep
    terms = Terms(
        max_new_tokens=sampling.max_new_tokens,
        seed=seed,
        ends=tuple(end_tokens(model, run.tokenizer, sampling)),
        max_positions=positions_of(model),
        tokenizer=run.tokenizer,
    )
    # Requests without a number are numbered as if dealt out to ranks in turn: no two share their noise, and rows that
    # are dealt out in turn get the same noise for any number of ranks.
    jobs = jobs_of(requests, terms, run.rank, run.world_size)
    sharded = is_sharded(run.config, run.world_size)
    with generating(run, policy):
        if jobs and not sharded and can_decode(model):
            rows = list(decode(model, jobs, sampling, rows_of(run)))
            tell_way(run, model, sampling.role)
        else:
            batches = batches_of(jobs, rows_of(run), terms.max_positions)
            rows = list(generate_batches(batches, sampling, terms.ends, run, policy, sharded))
    completions = {row.job.index: completion_of(row) for row in rows}
    return [completions[index] for index in range(len(requests))]
