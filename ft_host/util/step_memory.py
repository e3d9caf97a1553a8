"""What a step takes in memory: weights, what is kept for the backward pass, logits. Imports no torch.

Checked by benchmarks/memory_estimate.py, and what layers keep by benchmarks/saved_tensors.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ft_host.util.memory import rows_at_a_time
from ft_host.util.model_sizes import ModelSizes

# Values that an optimizer keeps per trained parameter, in the parameter's type. Any other counts as keeping two.
STATES = {"adafactor": 0.05, "torch_adafactor": 0.05, "torch.optim:Adafactor": 0.05, "sgd": 0.0}


def states_of(optim: str) -> float:
    """Return the values that an optimizer keeps per trained parameter, by its name or path; a value of 8 bits is a
    quarter of one."""
    usual = 1.0 if "lion" in optim.lower() else 2.0
    return STATES.get(optim, usual / 4 if "8bit" in optim.lower() else usual)


def update_bytes(optim: str, largest: int) -> int:
    """Return what an optimizer's step takes for a tensor of `largest` values beside what it keeps: transformers'
    Adafactor computes its update in float32, one tensor after the other. torch's AdamW is fused."""
    return 12 * largest if optim == "adafactor" else 0


# Bytes of a weight that bitsandbytes has packed, with its constants; by whether those are packed too.
PACKED = {4: {False: 0.5 + 4 / 64, True: 0.5 + 1 / 64 + 4 / (64 * 256)}, 8: {False: 1.0, True: 1.0}}


# ---------------------------------------------------------------- what is kept for the backward pass


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How layers compute. `width`: bytes of a value that a product gives or takes. `states`: of one that goes from
    layer to layer. `norms` and `mlps`: whether norms, and gated MLPs and experts, are those of ft_host.models.lean.
    `adapter`: whether only an adapter is trained. `segments`: whether attention is one call a segment."""

    width: int
    states: int
    norms: bool = False
    mlps: bool = False
    adapter: bool = False
    segments: bool = False


def kept_by_layer(shape: ModelSizes, how: Kept) -> int:
    """Return the bytes that a layer keeps of a token."""
    hidden, wide, queries, keys, width = shape.hidden, shape.wide, shape.query_values, shape.cached // 2, how.width
    # queries, keys and values, before or after norms and rotation, which make each other; what attention gives; gate
    # and up; inputs of two norms
    size = width * (2 * queries + 2 * keys + 2 * wide) + how.states * 2 * hidden
    if shape.chosen:
        size += width * 2 * shape.chosen * hidden  # inputs and outputs of a token's experts
    if not (how.norms or how.mlps) or (how.adapter and width == 2) or not how.segments:
        size += width * queries  # the input of attention's last projection: in another layout, or an adapter's copy
    return size + kept_by_norms(shape, how) + kept_by_mlps(shape, how)


def kept_by_norms(shape: ModelSizes, how: Kept) -> int:
    """Return what a layer's norms keep of a token beside their inputs, and what is kept of what they give."""
    hidden, width, mixed = shape.hidden, how.width, how.width == 2
    if how.norms:
        return width * hidden if how.adapter and mixed else 0  # an adapter's copy of what isn't made again
    normed = shape.query_values + shape.cached // 2 if shape.norms else 0
    size = width * normed  # inputs of norms on queries and keys, whose outputs are kept too
    if how.adapter:
        copies = width * 5 * hidden if mixed else 0  # each adapter has a copy of its input, in its products' type
        return size + copies + width * (2 * hidden + (normed if mixed else 0))
    size += 4 * (2 * hidden + normed)  # what they compute in float32
    return size + width * (5 if how.states > width else 2) * hidden  # their outputs: cast for each product, or once


def kept_by_mlps(shape: ModelSizes, how: Kept) -> int:
    """Return what is kept of a token between gate, up and the last projection, or of an adapter's copy of it."""
    return 0 if how.mlps else how.width * 2 * shape.wide


def activation_bytes(shape: ModelSizes, tokens: int, how: Kept, checkpointing: bool = False) -> int:
    """Estimate what a micro-batch keeps for its backward pass, and what one layer's backward pass takes beside it
    (about the inputs and outputs of its products and norms).

    With checkpointing: the input of each layer, and one layer in full, whose second forward keeps what it makes.
    """
    if checkpointing:
        kept = shape.layers * tokens * how.states * shape.hidden
        kept += tokens * kept_by_layer(shape, replace(how, norms=False, mlps=False))
    else:
        kept = shape.layers * tokens * kept_by_layer(shape, how)
    return kept + tokens * how.width * (14 * shape.hidden + 4 * shape.wide)


def logit_bytes(tokens: int, vocabulary: int, tile: int, targets: int, kept: int) -> int:
    """Estimate the memory of the head: all logits in float32 where they fit in `kept` bytes, else two tiles of them.

    `tile`: bytes of a tile, which has at least `targets` rows.
    """
    whole = 4 * tokens * vocabulary
    return whole if whole <= kept else min(2 * whole, 2 * max(tile, 4 * targets * vocabulary))


# ---------------------------------------------------------------- tokens


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


def cached_tokens(config: Any, facts: Mapping[str, Any], jobs: int) -> int:
    """Return the tokens whose keys and values generation holds at once, for `jobs` completions in all."""
    prompt = min(config.max_length or 2048, facts.get("data/length_max", config.max_length or 2048))
    return min(rows_at_a_time(config, facts), jobs) * (prompt + config.max_completion_length)


# ---------------------------------------------------------------- all of it


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes of one process. `weights`, and of them `trained`: what it holds all the time. `copies`: what autocast makes
    of wider matrices, and what is unpacked of a quantised one. `layer`, `ends`: one layer, and embeddings with head,
    whole and in the type of products, of a model that is sharded; 0 otherwise. `head`: the matrix of the head in that
    type, where it is trained."""

    weights: float
    trained: float
    copies: float = 0.0
    layer: float = 0.0
    ends: float = 0.0
    head: float = 0.0


def step_bytes(
    held: Held,
    shape: ModelSizes,
    how: Kept,
    *,
    tokens: int,
    optim: str,
    largest: int,
    logits: int,
    checkpointing: bool = False,
    buckets: bool = False,
) -> dict[str, float]:
    """Return the bytes of a training step of one process by part. `optim`: the optimizer's name or path. `largest`:
    values of the largest trained tensor. `buckets`: whether DDP has a second copy of the gradients."""
    activations = activation_bytes(shape, tokens, how, checkpointing) + held.copies
    activations += 2 * held.layer + held.ends  # the next layer is gathered while one computes
    if not how.adapter:  # gradients of whole layers, and in float32 for the reduction
        activations += (1 + 4 / how.width) * (held.layer + held.ends)
    return {
        "weights": held.weights,
        "gradients": held.trained * (2 if buckets else 1),
        "optimizer": held.trained * states_of(optim) + update_bytes(optim, largest),
        "activations": activations,
        "logits": logits + held.head,  # a tile's part of the matrix' gradient
    }
