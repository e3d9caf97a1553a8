"""Compares the sampler's log-probs with the policy's on a few prompts: does the sampler have the weights that are
trained?

Before the first rollout it finds other precisions, kernels and chat formats; after the first update, weights that did
not arrive. Both would otherwise show as training that doesn't learn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ft_host.batch import flat_batch, per_target
from ft_host.errors import FtHostError
from ft_host.generation import Request, Sampling
from ft_host.models.aux_models import frozen_eval
from ft_host.rollouts.rows import completion_row, completion_segments
from ft_host.types import Completion, Row

if TYPE_CHECKING:
    from ft_host.run import Run

Generate = Callable[[list[Request], Sampling], list[Completion]]


PROMPTS = 4  # of each rank
TOKENS = 16  # of each of their completions, at most


def probe_sampler(rows: list[Row], run: Run, when: str, generate: Generate | None = None) -> None:
    """Complete some of these prompts and report how far the backend's log-probs are from the policy's. All ranks must
    call it at once. `when` is the beginning of the message, `generate` completes requests where `run.generate` doesn't.

    Raises FtHostError if the mean difference is above `max_sampling_logp_difference`.
    """
    config = run.config
    count, mean, most = compared(rows, run, run.generate if generate is None else generate)
    run.record_facts(difference_facts(mean, most, config.max_sampling_logp_difference, run.step > 0))
    if not torch.isfinite(torch.tensor(mean)) or mean > config.max_sampling_logp_difference:
        raise FtHostError(
            f"{when}, the log-probs of the backend {config.backend} differ from the policy's by {mean:.3g} nats on"
            f" average (over {count} tokens, {most:.3g} at most), and max_sampling_logp_difference allows"
            f" {config.max_sampling_logp_difference:g}: it doesn't sample from the trained model. "
            + (
                "The update of its weights did not arrive"
                if run.step
                else "Look for another precision (dtype, bf16), quantised weights, another model or revision"
            )
        )
    run.say(
        f"{when}, the log-probs of the backend {config.backend} match the policy's within {mean:.2g} nats on average, "
        f"{most:.2g} at most ({count} tokens)"
    )


def compared(rows: list[Row], run: Run, generate: Generate, *, same_version: bool = False) -> tuple[int, float, float]:
    """Complete some of these prompts and return the number of tokens, and the mean and the largest difference of the
    backend's log-probs from the policy's, over all ranks. `same_version`: completions that the backend itself says are
    of other weights are left out. All ranks must call it at once; a rank may have no prompts.

    It samples at the run's temperature from all tokens, as `top_p` and the like change the distribution.
    """
    config, rows = run.config, rows[:PROMPTS]
    limit = min(TOKENS, config.max_completion_length)
    requests = [Request(prompt_ids=row["prompt_ids"], number=row["group"], max_new_tokens=limit) for row in rows]
    sampling = Sampling(max_new_tokens=limit, temperature=config.temperature, seed=config.seed)
    rows_sampled = [
        completion_row(row, completion)
        for row, completion in zip(rows, generate(requests, sampling), strict=True)
        if not same_version or all(version == run.step for version in completion.versions)
    ]
    apart = differences(rows_sampled, run).abs()
    ranks = run.gather((len(apart), float(apart.sum()), float(apart.max()) if len(apart) else 0.0))
    count = sum(size for size, _, _ in ranks)
    return count, sum(total for _, total, _ in ranks) / max(count, 1), max(largest for _, _, largest in ranks)


def differences(rows: list[Row], run: Run) -> torch.Tensor:
    """Return the policy's log-prob of each target less the sampler's, (N,) float64 on the CPU, in one forward pass. All
    ranks must call it at once; a rank may have no rows."""
    batch = flat_batch(completion_segments(rows), num_rows=len(rows)).to(run.device)
    with frozen_eval(run.policy), run.accelerator.autocast():
        ours = run.policy(batch, want=("logp",), temperature=run.config.temperature)["logp"]
    return ours.cpu().double() - per_target(rows, "sampling_logps").double()


def difference_facts(mean: float, most: float, limit: float, updated: bool) -> dict[str, Any]:
    """Return the differences as facts of the run."""
    when = "_after_update" if updated else ""
    return {
        f"probe/sampler_difference_max{when}": most,
        "probe/sampler_difference_limit": limit,
        f"probe/sampler_difference{when}": mean,
    }
