"""The estimated peak memory of a plan, by part, and the phase of a run in which memory ran out. Imports no torch.

The estimate is for one process. Weights, gradients, optimizer and auxiliary models are counted from sizes; activations,
logits, keys and values are computed for the largest micro-batch to be expected.
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
FEW_ROWS, MANY_ROWS = 64, 256  # completions that are generated at a time: on a CPU, and at most where memory decides


# Values that an optimizer keeps per trained parameter, in the parameter's type. Any other counts as keeping two.
STATES = {"adafactor": 0.05, "torch_adafactor": 0.05, "torch.optim:Adafactor": 0.05, "sgd": 0.0}


def states_of(optim: str) -> float:
    """Return the values that an optimizer keeps per trained parameter, by its name or path; a value of 8 bits is a
    quarter of one."""
    usual = 1.0 if "lion" in optim.lower() else 2.0
    return STATES.get(optim, usual / 4 if "8bit" in optim.lower() else usual)


# The words for each part, in the order of the sentence.
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
    """The sizes in a model's config."""

    hidden: int
    layers: int
    wide: int  # of the MLP, summed over the experts of a token
    vocabulary: int
    cached: int  # values in the KV cache per token and layer


def model_sizes_of(fields: Mapping[str, Any]) -> ModelSizes:
    """Return the sizes. `fields`: the config of a language model (the text part), as in its config.json."""
    hidden = fields["hidden_size"]
    heads = fields.get("num_attention_heads") or 1
    groups = fields.get("num_key_value_heads") or heads
    experts = fields.get("num_experts_per_tok")
    wide = fields.get("moe_intermediate_size") if experts else None
    wide = wide or fields.get("intermediate_size") or 4 * hidden
    if isinstance(wide, list):  # one for each layer (Gemma 3n)
        wide = max(wide)
    return ModelSizes(
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        wide=wide * (experts or 1),
        vocabulary=fields.get("vocab_size") or 0,
        cached=2 * groups * (fields.get("head_dim") or hidden // heads),
    )


def activation_bytes(shape: ModelSizes, tokens: int, width: int, checkpointing: bool = False) -> int:
    """Estimate what a micro-batch keeps for its backward pass.

    Per token and layer: the inputs of each product and norm, and what is between them (fourteen widths of the hidden
    state, four of a gated MLP), and for one layer also their gradients. With checkpointing: the input of each layer,
    and one layer in full. Checked by benchmarks/memory_estimate.py.
    """
    layer = tokens * width * (14 * shape.hidden + 4 * shape.wide)
    kept = shape.layers * tokens * width * shape.hidden + layer if checkpointing else shape.layers * layer
    return kept + layer


def logit_bytes(tokens: int, vocabulary: int, tile: int, targets: int, kept: int) -> int:
    """Estimate the memory of the head: all logits in float32 where they fit in `kept` bytes, else two tiles of them.

    `tile`: bytes of a tile, which has at least `targets` rows.
    """
    whole = 4 * tokens * vocabulary
    return whole if whole <= kept else min(2 * whole, 2 * max(tile, 4 * targets * vocabulary))


def longest_batch(rows: int, typical: float, longest: float) -> int:
    """Return the tokens of the largest micro-batch to be expected: many rows average out, one row may be
    the longest.
    """
    return math.ceil(rows * (typical + (longest - typical) / math.sqrt(rows)))


def tokens_of(config: Any, facts: Mapping[str, Any]) -> int:
    """Return the tokens of the largest micro-batch. `facts`: lengths of the data, where they were measured.

    Completions are assumed to have the maximum length.
    """
    limit = config.max_length or 2048
    longest = min(limit, facts.get("data/length_max", limit))
    typical = min(limit, facts.get("data/length_p50", longest))
    rows = config.per_device_train_batch_size
    if config.packing:
        longest = typical = limit
    if "plan/generations" in facts:  # the measured lengths are of prompts
        longest, typical = longest + config.max_completion_length, typical + config.max_completion_length
    if "data/length_ratio" in facts:  # pairs: two texts a row
        longest, typical = 2 * longest, 2 * typical
    budget = config.max_tokens_per_micro_batch
    if budget is None:
        return longest_batch(rows, typical, longest)
    every = longest_batch(rows * config.gradient_accumulation_steps, typical, longest)
    return min(every, max(budget, math.ceil(longest)))


def rows_that_fit(left: float, row: int) -> int:
    """Return how many completions are generated at a time with `left` bytes, of which each needs `row` bytes at its
    longest: MANY_ROWS, or fewer, in eights."""
    return max(8, min(MANY_ROWS, int(0.7 * left / row) // 8 * 8))


def rows_at_a_time(config: Any, facts: Mapping[str, Any]) -> int:
    """Return decode_batch_size, or what the run has taken for it."""
    return config.decode_batch_size or facts.get("plan/decode_batch_size", FEW_ROWS)


def cached_tokens(config: Any, facts: Mapping[str, Any], jobs: int) -> int:
    """Return the tokens whose keys and values generation holds at once, for `jobs` completions in all."""
    prompt = min(config.max_length or 2048, facts.get("data/length_max", config.max_length or 2048))
    return min(rows_at_a_time(config, facts), jobs) * (prompt + config.max_completion_length)


def peak_mb(parts: Mapping[str, float]) -> float:
    """Return the peak of a step: training holds gradients, activations and logits; generation holds keys and values."""
    always = sum(parts.get(name, 0.0) for name in ("base", "weights", "optimizer", "companions"))
    training = sum(parts.get(name, 0.0) for name in ("gradients", "activations", "logits"))
    return always + max(training, parts.get("generation", 0.0))


def memory_facts(parts: Mapping[str, float]) -> dict[str, float]:
    """Return the estimate as facts of the run."""
    return {"plan/memory_mb": round(peak_mb(parts), 1)} | {
        f"plan/memory_{name}_mb": round(value, 1) for name, value in parts.items()
    }


def in_words(parts: Mapping[str, float]) -> str:
    """Return "about 412 MB of memory at the peak: weights 120, ...", without parts of less than a hundredth."""
    whole = peak_mb(parts)
    named = [
        f"{said} {parts[name]:,.0f}" for name, said in PARTS.items() if parts.get(name, 0.0) >= max(0.5, 0.01 * whole)
    ]
    return f"about {whole:,.0f} MB of memory at the peak of a process, estimated: {', '.join(named)}"


LOADING, COMPANIONS = "loading the model", "loading the models beside it"


FORWARD, BACKWARD, UPDATE = "the forward pass", "the backward pass", "the optimizer's step"


GENERATION, EVALUATION, SAVING = "generation", "an evaluation", "writing a checkpoint"


ANNOTATION = "scoring rows with other models"


# torch's own class is a RuntimeError with the first text; the CPU allocator and cuBLAS have no class of their own.
MARKS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Return whether an error came from an allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)
    )


@contextlib.contextmanager
def oom_context(phase: str, step: int = 0) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into OutOfMemory, with the fact for SYS004.

    `phase`: one of those above. `step`: the current step. With nested blocks the innermost phase counts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        # The frames hold tensors, mostly activations, as long as the error exists: a checkpoint needs the
        # memory.
        traceback.clear_frames(error.__traceback__)
        during = f"{phase} of step {step}" if step else phase
        message = str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
        raise OutOfMemory(
            f"memory ran out in {during} ({message})",
            phase=phase,
            facts={"watch/out_of_memory": phase, "watch/out_of_memory_step": step},
        ) from error
