"""The memory that a run is expected to take, by part, from its models, before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ft_host.config.rollout import RolloutConfig
from ft_host.distributed.processes import free_memory
from ft_host.models.checkpointing import copied_bytes, kept_by, sizes_of
from ft_host.models.head import KEPT_BYTES
from ft_host.models.tiles import TILE_BYTES, TILE_TARGETS
from ft_host.monitor.memory_usage import resident_mb
from ft_host.util.memory import MB, in_words, memory_facts, rows_at_a_time
from ft_host.util.model_sizes import ModelSizes
from ft_host.util.step_memory import PACKED, Held, cached_tokens, logit_bytes, step_bytes, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ft_host.run import Run


def memory_parts(run: Run, facts: Mapping[str, Any], held_out: int) -> dict[str, float]:
    """Return megabytes of one process by part, once its models are loaded. `facts`: lengths of the data. `held_out`:
    rows whose prompts are completed in an evaluation. On a CPU the memory of the process beside its models is a part
    too."""
    config, policy = run.config, run.policy
    shape = sizes_of(policy.config.get_text_config())
    kept, tokens = kept_by(policy, config), tokens_of(config, facts)
    tile = TILE_BYTES.get(run.device.type, TILE_BYTES["cuda"])
    logits = 0 if policy.head else logit_bytes(tokens, shape.vocabulary, tile, TILE_TARGETS, KEPT_BYTES)
    models = [aux_model.held for aux_model in run.models.values() if aux_model.held is not None]
    parts = step_bytes(
        held_by(run, shape, kept.width),
        shape,
        kept,
        tokens=tokens,
        optim=config.optim,
        largest=max((local(p).numel() for p in policy.parameters() if p.requires_grad), default=0),
        logits=logits,
        checkpointing=policy.recomputes,
        buckets=isinstance(run.model, DistributedDataParallel) and not run.model.gradient_as_bucket_view,
    )
    parts["companions"] = size_of(p for model in models for p in model.parameters())
    parts["generation"] = generation_bytes(run, facts, shape, held_out, kept.width)
    out = {name: value / MB for name, value in parts.items()}
    if run.device.type != "cpu":
        return out
    return {"base": max(0.0, resident_mb() - out["weights"] - out["companions"])} | out


def held_by(run: Run, shape: ModelSizes, width: int) -> Held:
    """Return what the policy's weights take on this process."""
    config, policy = run.config, run.policy
    parameters = list(policy.parameters())
    trained = [p for p in parameters if p.requires_grad]
    weights = size_of(parameters)
    if config.load_in_4bit:  # the constants of a block are no parameters
        packed = size_of(p for p in parameters if p.dtype == torch.uint8)
        weights += round(packed * (PACKED[4][config.use_bnb_nested_quant] / 0.5 - 1))
    layer = ends = head = 0
    values = 0 if policy.head else shape.vocabulary * shape.hidden
    if any(isinstance(p, DTensor) for p in parameters):
        tied = policy.head is None and policy.causal_lm.config.get_text_config().tie_word_embeddings
        ends = width * (values if tied else 2 * values)
        layer = max(0, width * sum(p.numel() for p in parameters) - ends) // max(1, shape.layers)
    if not config.use_peft:
        head = width * values
    return Held(
        weights=weights,
        trained=size_of(trained),
        copies=copied_bytes(policy, config),
        layer=layer,
        ends=ends,
        head=head,
    )


def size_of(parameters: Iterable[torch.Tensor]) -> int:
    """Return the bytes of them that this process holds."""
    return sum(local(p).nbytes for p in parameters)


def local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def generation_bytes(run: Run, facts: Mapping[str, Any], shape: Any, held_out: int, width: int) -> int:
    """Return the bytes of keys and values that the built-in backend holds at once, and of the logits of one token for
    each completion. Another backend has memory of its own."""
    config, plan = run.config, run.rollouts
    jobs = held_out
    elsewhere = plan is None or config.rollouts == "async" or config.replay is not None  # where completions are made
    if plan is not None and plan.generations and not elsewhere:
        jobs = max(jobs, plan.completions * (1 + config.rollouts_ahead(plan)))
    if config.backend != "transformers" or not jobs:
        return 0
    if not (config.eval_reward or isinstance(config, RolloutConfig)):
        return 0
    jobs = -(-jobs // run.world_size)
    rows = min(rows_at_a_time(config, facts), jobs)
    cache = cached_tokens(config, facts, jobs) * shape.layers * shape.cached * width
    return cache + 3 * 4 * rows * shape.vocabulary  # logits, their softmax, and noise


def free_mb(device: torch.device) -> float:
    """Return the free megabytes of the device, or of the machine."""
    return free_memory(device) / MB


def record_estimate(run: Run, held_out: int) -> None:
    """Told before the first step, so that a plan which doesn't fit is known to be one. `held_out`: rows of an
    evaluation. Of the main process."""
    parts = memory_parts(run, run.watch.engine.view.facts, held_out)
    held = sum(parts[name] for name in ("weights", "companions")) + parts.get("base", 0.0)
    run.record_facts(memory_facts(parts) | {"system/memory_mb": round(free_mb(run.device) + held, 1)})
    run.say(in_words(parts))
