"""How much memory a plan takes at its peak, by part, and in which phase of a run memory ran out. Imports no torch.

An estimate for one process, from sizes: what can be counted (weights, gradients, optimizer, companions) is counted,
what depends on rows (activations, logits, keys and values) is worked out for the largest micro-batch that is to be
expected.
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.errors import OutOfMemory

if TYPE_CHECKING:
    pass


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
class ModelSizes:
    """What a model's config says of its size."""

    hidden: int
    layers: int
    wide: int  # of the MLP, of all experts that a token goes through
    vocabulary: int
    cached: int  # numbers that generation keeps for a token and layer: keys and values


def model_sizes_of(fields: Mapping[str, Any]) -> ModelSizes:
    """`fields`: of the config of a language model (the text part), as in its config.json."""
    hidden = fields["hidden_size"]
    heads = fields.get("num_attention_heads") or 1
    groups = fields.get("num_key_value_heads") or heads
    experts = fields.get("num_experts_per_tok")
    wide = fields.get("moe_intermediate_size") if experts else None
    wide = wide or fields.get("intermediate_size") or 4 * hidden
    return ModelSizes(
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        wide=wide * (experts or 1),
        vocabulary=fields.get("vocab_size") or 0,
        cached=2 * groups * (fields.get("head_dim") or hidden // heads),
    )


def activation_bytes(shape: ModelSizes, tokens: int, width: int, checkpointing: bool = False) -> int:
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


LOADING, COMPANIONS = "loading the model", "loading the models beside it"


FORWARD, BACKWARD, UPDATE = "the forward pass", "the backward pass", "the optimizer's step"


GENERATION, EVALUATION, SAVING = "generation", "an evaluation", "writing a checkpoint"


ANNOTATION = "scoring rows with other models"


# torch's own class is a RuntimeError whose text has the first; its allocator on a CPU and cuBLAS have no class.
MARKS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an error is that of an allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)
    )


@contextlib.contextmanager
def oom_context(phase: str, step: int = 0) -> Iterator[None]:
    """`phase`: one of those above. `step`: the one that is under way.

    Raises OutOfMemory, with the fact for SYS004, where memory runs out within. The innermost of several phases counts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        # What the frames hold, activations above all, would stay as long as the error does: a checkpoint needs the
        # room.
        traceback.clear_frames(error.__traceback__)
        during = f"{phase} of step {step}" if step else phase
        said = str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
        raise OutOfMemory(
            f"memory ran out in {during} ({said})",
            phase=phase,
            facts={"watch/out_of_memory": phase, "watch/out_of_memory_step": step},
        ) from error
