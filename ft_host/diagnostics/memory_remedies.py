"""Remedies that reduce the memory of a run, by the phase in which it ran out: cheapest first. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ft_host.diagnostics.rule import Remedy
from ft_host.util.memory import (
    ANNOTATION,
    BACKWARD,
    COMPANIONS,
    EVALUATION,
    FORWARD,
    GENERATION,
    LOADING,
    SAVING,
    UPDATE,
    rows_at_a_time,
)

Facts = Mapping[str, Any]
NO_FACTS: Facts = {}

# ---------------------------------------------------------------- what makes it less


def smaller_micro_batch(config: Any, facts: Facts) -> Remedy | None:
    """Halve the micro-batch and double their number, or a third where rows are odd; None where it has one row."""
    budget = config.max_tokens_per_micro_batch
    if budget == 1:
        return None
    if budget is not None:
        return Remedy(
            why=f"Lower max_tokens_per_micro_batch from {budget} to {budget // 2}; a step keeps its size",
            patch={"max_tokens_per_micro_batch": budget // 2},
            safe=True,
            expected="half the activations",
        )
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    parts = next((each for each in range(2, rows + 1) if rows % each == 0), None)  # 2, where rows are even
    if parts is None:
        return None
    patch = {"per_device_train_batch_size": rows // parts, "gradient_accumulation_steps": parts * steps}
    counted = vars(config).get("steps_per_generation")  # in micro-batches
    if counted:
        patch["steps_per_generation"] = parts * counted
    return Remedy(
        why=(
            f"Lower per_device_train_batch_size from {rows} to {rows // parts} and raise gradient_accumulation_steps"
            f" from {steps} to {parts * steps}; the effective batch stays the same"
        ),
        patch=patch,
        safe=True,
        expected="half the activations" if parts == 2 else f"a {parts}th of the activations",
    )


def checkpointing(config: Any, facts: Facts) -> Remedy | None:
    if config.gradient_checkpointing:
        return None
    return Remedy(
        why="Set gradient_checkpointing to true: less memory, about a third more compute",
        patch={"gradient_checkpointing": True},
        safe=True,
        expected="a fraction of the activations",
    )


def shorter_rows(config: Any, facts: Facts) -> Remedy | None:
    """Half of the limit, or of the longest row that was seen, where that is less; what 95 of 100 rows are within, where
    that helps nearly as much."""
    limit, longest = config.max_length, facts.get("data/length_max", 0)
    most = longest if limit is None else min(limit, longest or limit)
    if most < 64:
        return None
    usual = facts.get("data/length_p95", most)
    new = usual if most / 2 <= usual <= 0.75 * most else most // 2
    return Remedy(
        why=f"Lower max_length from {'no limit' if limit is None else limit} to {new}, which cuts longer rows",
        patch={"max_length": new},
        again=True,
    )


def adapter(config: Any, facts: Facts) -> Remedy | None:
    if config.use_peft:
        return None
    return Remedy(
        why=(
            "Set use_peft to true and learning_rate ten times as high: LoRA has no optimizer state for the model's "
            "own weights"
        ),
        patch={"use_peft": True, "learning_rate": float(f"{10 * config.learning_rate:.2g}")},
        again=True,
    )


def half_precision(config: Any, facts: Facts) -> Remedy | None:
    if config.dtype not in (None, "float32") or config.fp16:
        return None
    if not config.use_peft:
        return Remedy(
            why="Set use_peft to true and dtype to bfloat16: frozen weights don't need more",
            patch={"use_peft": True, "dtype": "bfloat16"},
            again=True,
            expected="half the weights",
        )
    if config.dtype is None and in_bfloat16(config, facts):
        return None  # they are
    return Remedy(
        why="Set dtype to bfloat16: frozen weights don't need more",
        patch={"dtype": "bfloat16"},
        again=True,
        expected="half the weights",
    )


def in_bfloat16(config: Any, facts: Facts) -> bool:
    """Whether the maths is in bfloat16, as it is on a GPU if nothing else is said."""
    if config.bf16 is None:
        return not config.use_cpu and facts.get("plan/device") != "cpu"
    return config.bf16


def small_optimizer(config: Any, facts: Facts) -> Remedy | None:
    if config.optim not in ("adamw", "adamw_torch", "adamw_torch_fused"):
        return None
    return Remedy(
        why=(
            "Set optim to adafactor, which keeps only a row and a column per matrix. learning_rate keeps its meaning,"
            " the size of a step; there is no momentum, so that steps are noisier than AdamW's"
        ),
        patch={"optim": "adafactor"},
        again=True,
    )


def fewer_at_a_time(config: Any, facts: Facts) -> Remedy | None:
    """Half of what is sampled at a time, which is a rollout's at most."""
    size = rows_at_a_time(config, facts)
    rollout = math.ceil(
        facts.get("plan/prompts", 0) * facts.get("plan/generations", 0) / facts.get("plan/processes", 1)
    )
    new = min(size, max(rollout, facts.get("plan/scored_rows", 0)) or size) // 2
    if new < 1:
        return None
    return Remedy(
        why=f"Lower decode_batch_size from {size} to {new}: fewer completions at a time",
        patch={"decode_batch_size": new},
        safe=True,
        expected="half the keys and values",
    )


def shorter_completions(config: Any, facts: Facts) -> Remedy | None:
    size = config.max_completion_length
    if size < 2:
        return None
    return Remedy(
        why=f"Lower max_completion_length from {size} to {size // 2}, which cuts longer completions",
        patch={"max_completion_length": size // 2},
        again=True,
    )


def smaller_evaluation(config: Any, facts: Facts) -> Remedy | None:
    size = config.per_device_eval_batch_size
    if size < 2:
        return None
    return Remedy(
        why=f"Lower per_device_eval_batch_size from {size} to {size // 2}; the result doesn't depend on it",
        patch={"per_device_eval_batch_size": size // 2},
        safe=True,
    )


def shards(config: Any, facts: Facts) -> Remedy | None:
    if config.distributed_strategy == "fsdp2":
        return None
    return Remedy(why="Shard the model over several devices: distributed_strategy fsdp2 with num_processes")


def smaller_model(config: Any, facts: Facts) -> Remedy | None:
    return Remedy(why="Use a smaller model, or a machine with more memory")


MakeRemedy = Callable[[Any, Facts], Remedy | None]
TRAINING: tuple[MakeRemedy, ...] = (smaller_micro_batch, checkpointing, shorter_rows, adapter, shards, smaller_model)
REMEDIES: dict[str, tuple[MakeRemedy, ...]] = {  # cheapest first
    LOADING: (half_precision, shards, smaller_model),
    COMPANIONS: (adapter, half_precision, shards, smaller_model),
    FORWARD: TRAINING,
    BACKWARD: TRAINING,
    UPDATE: (small_optimizer, adapter, shards, smaller_model),
    GENERATION: (fewer_at_a_time, shorter_completions, smaller_model),
    EVALUATION: (smaller_evaluation, fewer_at_a_time, smaller_model),
    ANNOTATION: (smaller_micro_batch, shorter_rows, shards, smaller_model),
    SAVING: (small_optimizer, adapter, smaller_model),
}


def remedies_for(phase: str, config: Any, facts: Facts = NO_FACTS) -> list[Remedy]:
    """Return the three cheapest that this config doesn't use yet. `facts`: the run's, as far as they are known."""
    remedies = [mend(config, facts) for mend in REMEDIES[phase]]
    return [remedy for remedy in remedies if remedy is not None][:3]
