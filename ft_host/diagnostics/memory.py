"""How much memory a plan takes at its peak, by part, and what makes it less. Imports no torch.

An estimate for one process, from sizes: what can be counted (weights, gradients, optimizer, companions) is counted,
what depends on rows (activations, logits, keys and values) is worked out for the largest micro-batch that is to be
expected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ft_host.diagnostics.rule import Remedy

MB = 2**20
# Values that AdamW and others keep for each that is trained. An optimizer that isn't named is taken for one of two.
STATES = {"adafactor": 0.05, "sgd": 0.0}

# What is said of each part, in the order of the sentence.
PARTS = {
    "base": "interpreter and libraries",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "companions": "other models",
    "activations": "activations",
    "logits": "logits",
    "generation": "generation",
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's config says of its size."""

    hidden: int
    layers: int
    wide: int  # of the MLP, of all experts that a token goes through
    vocabulary: int
    cached: int  # numbers that generation keeps for a token and layer: keys and values


def shape_of(fields: Mapping[str, Any]) -> Shape:
    """`fields`: of the config of a language model (the text part), as in its config.json."""
    hidden = fields["hidden_size"]
    heads = fields.get("num_attention_heads") or 1
    groups = fields.get("num_key_value_heads") or heads
    experts = fields.get("num_experts_per_tok")
    wide = fields.get("moe_intermediate_size") if experts else None
    wide = wide or fields.get("intermediate_size") or 4 * hidden
    return Shape(
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        wide=wide * (experts or 1),
        vocabulary=fields.get("vocab_size") or 0,
        cached=2 * groups * (fields.get("head_dim") or hidden // heads),
    )


def activation_bytes(shape: Shape, tokens: int, width: int, checkpointing: bool = False) -> int:
    """About what a micro-batch keeps for its backward pass: per token and layer, the inputs of each product and norm,
    with what is between them (fourteen widths of the hidden state, four of a gated MLP), and for one layer their
    gradients too. With checkpointing the input of each layer, and one layer in full. Checked by
    benchmarks/memory_estimate.py."""
    layer = tokens * width * (14 * shape.hidden + 4 * shape.wide)
    kept = shape.layers * tokens * width * shape.hidden + layer if checkpointing else shape.layers * layer
    return kept + layer


def logit_bytes(tokens: int, vocabulary: int, tile: int, targets: int, kept: int) -> int:
    """What the head takes: all logits in float32 where they are few enough to be kept, else two tiles of them. `tile`:
    bytes of a tile, which has no fewer than `targets` rows; `kept`: bytes up to which all are kept."""
    whole = 4 * tokens * vocabulary
    return whole if whole <= kept else min(2 * whole, 2 * max(tile, 4 * targets * vocabulary))


def longest_batch(rows: int, typical: float, longest: float) -> int:
    """Tokens of the largest micro-batch that is to be expected: many rows even out, one row may be the longest."""
    return math.ceil(rows * (typical + (longest - typical) / math.sqrt(rows)))


def tokens_of(config: Any, facts: Mapping[str, Any]) -> int:
    """Tokens of the largest micro-batch. `facts`: lengths of the data, where they were measured. Completions are taken
    to be as long as they may."""
    limit = config.max_length or 2048
    longest = min(limit, facts.get("data/length_max", limit))
    typical = min(limit, facts.get("data/length_p50", longest))
    rows = config.per_device_train_batch_size
    if config.packing:
        longest = typical = limit
    if "plan/generations" in facts:  # what was measured are prompts
        longest, typical = longest + config.max_completion_length, typical + config.max_completion_length
    if "data/length_ratio" in facts:  # pairs: two texts a row
        longest, typical = 2 * longest, 2 * typical
    budget = config.max_tokens_per_micro_batch
    if budget is None:
        return longest_batch(rows, typical, longest)
    every = longest_batch(rows * config.gradient_accumulation_steps, typical, longest)
    return min(every, max(budget, math.ceil(longest)))


def cached_tokens(config: Any, facts: Mapping[str, Any], jobs: int) -> int:
    """Tokens whose keys and values generation holds at once, for `jobs` completions in all."""
    prompt = min(config.max_length or 2048, facts.get("data/length_max", config.max_length or 2048))
    return min(config.decode_batch_size, jobs) * (prompt + config.max_completion_length)


def peak_mb(parts: Mapping[str, float]) -> float:
    """Of a step: gradients, activations and logits are there while it trains, keys and values while it generates."""
    always = sum(parts.get(name, 0.0) for name in ("base", "weights", "optimizer", "companions"))
    training = sum(parts.get(name, 0.0) for name in ("gradients", "activations", "logits"))
    return always + max(training, parts.get("generation", 0.0))


def memory_facts(parts: Mapping[str, float]) -> dict[str, float]:
    """As facts of the run."""
    return {"plan/memory_mb": round(peak_mb(parts), 1)} | {
        f"plan/memory_{name}_mb": round(value, 1) for name, value in parts.items()
    }


def in_words(parts: Mapping[str, float]) -> str:
    """ "about 412 MB of memory at the peak: weights 120, ..."; parts of less than a hundredth are left out."""
    whole = peak_mb(parts)
    named = [
        f"{said} {parts[name]:,.0f}" for name, said in PARTS.items() if parts.get(name, 0.0) >= max(0.5, 0.01 * whole)
    ]
    return f"about {whole:,.0f} MB of memory at the peak of a process, estimated: {', '.join(named)}"


# ---------------------------------------------------------------- what makes it less


LOADING, COMPANIONS = "loading the model", "loading the models beside it"
FORWARD, BACKWARD, UPDATE = "the forward pass", "the backward pass", "the optimizer's step"
GENERATION, EVALUATION, SAVING = "generation", "an evaluation", "writing a checkpoint"
ANNOTATION = "scoring rows with other models"


def smaller_micro_batch(config: Any) -> Remedy | None:
    """Half of a micro-batch, twice as many of them; None where it can't be halved."""
    budget = config.max_tokens_per_micro_batch
    if budget == 1:
        return None
    if budget is not None:
        return Remedy(
            why=f"Lower max_tokens_per_micro_batch from {budget} to {budget // 2}; a step stays what it is",
            patch={"max_tokens_per_micro_batch": budget // 2},
            safe=True,
            expected="half the activations",
        )
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if rows % 2:
        return None
    patch = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": 2 * steps}
    counted = vars(config).get("steps_per_generation")  # in micro-batches
    if counted:
        patch["steps_per_generation"] = 2 * counted
    return Remedy(
        why=(
            f"Lower per_device_train_batch_size from {rows} to {rows // 2} and raise gradient_accumulation_steps from"
            f" {steps} to {2 * steps}; the effective batch stays the same"
        ),
        patch=patch,
        safe=True,
        expected="half the activations",
    )


def checkpointing(config: Any) -> Remedy | None:
    if config.gradient_checkpointing:
        return None
    return Remedy(
        why="Set gradient_checkpointing to true: less memory, about a third more compute",
        patch={"gradient_checkpointing": True},
        safe=True,
        expected="a fraction of the activations",
    )


def shorter_rows(config: Any) -> Remedy | None:
    limit = config.max_length
    if limit is None or limit < 64:
        return None
    return Remedy(
        why=f"Lower max_length from {limit} to {limit // 2}, which cuts longer rows",
        patch={"max_length": limit // 2},
        again=True,
    )


def adapter(config: Any) -> Remedy | None:
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


def half_precision(config: Any) -> Remedy | None:
    if config.dtype != "float32" or config.fp16:
        return None
    if not config.use_peft:
        return Remedy(
            why="Set use_peft to true and dtype to bfloat16: frozen weights need no more",
            patch={"use_peft": True, "dtype": "bfloat16"},
            again=True,
            expected="half the weights",
        )
    return Remedy(
        why="Set dtype to bfloat16: frozen weights need no more",
        patch={"dtype": "bfloat16"},
        again=True,
        expected="half the weights",
    )


def small_optimizer(config: Any) -> Remedy | None:
    if config.optim not in ("adamw", "adamw_torch", "adamw_torch_fused"):
        return None
    return Remedy(
        why="Set optim to adafactor, which keeps a row and a column for each matrix",
        patch={"optim": "adafactor"},
        again=True,
    )


def fewer_at_a_time(config: Any) -> Remedy | None:
    size = config.decode_batch_size
    if size < 2:
        return None
    return Remedy(
        why=f"Lower decode_batch_size from {size} to {size // 2}: fewer completions at a time",
        patch={"decode_batch_size": size // 2},
        safe=True,
        expected="half the keys and values",
    )


def shorter_completions(config: Any) -> Remedy | None:
    size = config.max_completion_length
    if size < 2:
        return None
    return Remedy(
        why=f"Lower max_completion_length from {size} to {size // 2}, which cuts longer completions",
        patch={"max_completion_length": size // 2},
        again=True,
    )


def smaller_evaluation(config: Any) -> Remedy | None:
    size = config.per_device_eval_batch_size
    if size < 2:
        return None
    return Remedy(
        why=f"Lower per_device_eval_batch_size from {size} to {size // 2}; the result doesn't depend on it",
        patch={"per_device_eval_batch_size": size // 2},
        safe=True,
    )


def shards(config: Any) -> Remedy | None:
    if config.distributed_strategy == "fsdp2":
        return None
    return Remedy(why="Spread the model over several devices: distributed_strategy fsdp2 with num_processes")


def smaller_model(config: Any) -> Remedy | None:
    return Remedy(why="Take a smaller model, or a machine with more memory")


Mend = Callable[[Any], Remedy | None]
TRAINING: tuple[Mend, ...] = (smaller_micro_batch, checkpointing, shorter_rows, adapter, shards, smaller_model)
MENDS: dict[str, tuple[Mend, ...]] = {  # the cheapest first
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


def mends(phase: str, config: Any) -> list[Remedy]:
    """The three cheapest that this config has not taken yet."""
    found = [mend(config) for mend in MENDS[phase]]
    return [remedy for remedy in found if remedy is not None][:3]


def mends_of(phase: str, config: Mapping[str, Any]) -> list[Remedy]:
    return mends(phase, SimpleNamespace(**config))
