"""What a run is expected to take on a GPU, from the config of its model and its own, before anything is loaded; and
which settings make it fit a card. Imports no torch.

Once models are loaded, `monitor/memory_estimate` counts what is there with the same arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft_host.config.adapters import ALL_LINEAR
from ft_host.config.reference import ReferenceConfig
from ft_host.config.rollout import RolloutConfig
from ft_host.config.run import RunConfig
from ft_host.errors import ConfigError
from ft_host.util.adapters import base_of
from ft_host.util.memory import MANY_ROWS, MB, in_words, peak_mb
from ft_host.util.model_files import settings_problem
from ft_host.util.model_sizes import Counts, counts_of, model_sizes_of
from ft_host.util.step_memory import PACKED, Held, Kept, cached_tokens, logit_bytes, step_bytes, tokens_of

# Megabytes that the system gives of a card, by the gigabytes on its box.
CARDS = {24: 24_564, 48: 49_140, 80: 81_559, 141: 143_771}
CONTEXT_MB = 700  # CUDA itself, with its libraries
SHARE = 0.92  # of the rest: what the allocator leaves between blocks, and work space of kernels
TILE_MB = 256  # of a head's tile on a GPU


def room_mb(card: int) -> float:
    """Return the megabytes of a card that a run can use."""
    return SHARE * (CARDS[card] - CONTEXT_MB)


# ---------------------------------------------------------------- one run


def memory_plan(fields: Mapping[str, Any], config: RunConfig, processes: int = 1) -> dict[str, float] | None:
    """Return megabytes by part of one process on a GPU with bfloat16, with rows and completions as long as they may be.
    None for a model whose weights can't be counted from its config. `fields`: the text part of its config.json."""
    counts, shape = counts_of(fields), model_sizes_of(fields)
    if counts is None:
        return None
    sharded = config.distributed_strategy == "fsdp2" and processes > 1
    width = 4 if config.bf16 is False and not config.fp16 else 2
    held = held_by(counts, config, width)
    if sharded:
        layer = width * (counts.matrices + counts.experts) / shape.layers
        ends = width * (counts.embeddings + counts.head)
        held = Held(
            weights=held.weights / processes, trained=held.trained / processes, layer=layer, ends=ends, head=held.head
        )
    lean = not (config.use_liger_kernel or config.torch_compile)  # which have layers of their own
    kept = Kept(
        width=width,
        states=width if sharded or width == 4 else between_layers(config),
        norms=lean,
        mlps=lean,
        adapter=config.use_peft,
    )
    tokens = tokens_of(config, {"plan/generations": 1} if isinstance(config, RolloutConfig) else {})
    parts = step_bytes(
        held,
        shape,
        kept,
        tokens=tokens,
        optim=config.optim,
        largest=0 if config.use_peft else max(counts.embeddings, counts.largest) // (processes if sharded else 1),
        logits=logit_bytes(tokens, shape.vocabulary, TILE_MB * MB, 128, 64 * MB),
        checkpointing=bool(config.gradient_checkpointing),
    )
    if isinstance(config, ReferenceConfig) and config.no_reference is None and not config.use_peft:
        parts["companions"] = counts.all * frozen_width(config, width) / (processes if sharded else 1)
    if isinstance(config, RolloutConfig) and config.backend == "transformers" and config.rollouts != "async":
        rows = config.decode_batch_size or MANY_ROWS
        facts = {"plan/decode_batch_size": rows}
        parts["generation"] = cached_tokens(config, facts, rows) * shape.layers * shape.cached * width
        parts["generation"] += 12 * rows * shape.vocabulary
    return {name: value / MB for name, value in parts.items()}


def held_by(counts: Counts, config: RunConfig, width: int) -> Held:
    """Return what all weights take, unsharded."""
    trained = 2 if config.dtype in ("bfloat16", "float16") else 4
    if not config.use_peft:
        mixed = trained > width
        products = counts.all - counts.embeddings + (0 if counts.head else counts.embeddings)
        return Held(
            weights=trained * counts.all,
            trained=trained * counts.all,
            copies=width * products if mixed else 0,
            head=width * (counts.head or counts.embeddings),
        )
    frozen, bits = frozen_width(config, width), 4 if config.load_in_4bit else 8 if config.load_in_8bit else 0
    base = frozen * counts.all
    if bits:
        base += (PACKED[bits][config.use_bnb_nested_quant] - frozen) * counts.matrices
    names = None if config.lora_target_modules == ALL_LINEAR else config.lora_target_modules
    adapter = 4 * counts.adapter(config.lora_r, names if names and any(n in counts.linear for n in names) else None)
    adapter += 4 * counts.embeddings * len({"embed_tokens", "lm_head"} & set(config.lora_modules_to_save))
    copies = width * (counts.all - counts.embeddings) if frozen > width else 0.0
    return Held(weights=base + adapter, trained=adapter, copies=width * counts.largest if bits else copies)


def frozen_width(config: RunConfig, width: int) -> int:
    """Return the bytes of a frozen weight."""
    if config.dtype is None:
        return 4 if config.fp16 else width
    return 2 if config.dtype in ("bfloat16", "float16") else 4


def between_layers(config: RunConfig) -> int:
    """Return the bytes of a state between two layers, where products are in 16 bits."""
    short = config.dtype in ("bfloat16", "float16") or (config.dtype is None and config.use_peft and not config.fp16)
    return 2 if short else 4


# ---------------------------------------------------------------- what makes it fit


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Settings with which a run fits a card, and what a process then takes."""

    changes: dict[str, Any]
    megabytes: float


def ladder(config: RunConfig, most_cards: int) -> Iterator[dict[str, Any]]:
    """Yield settings to try, from those that change least to those that change most. `most_cards`: 1 for one card."""
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    checkpointing: dict[str, Any] = {"gradient_checkpointing": True}
    by_row = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows * steps} if rows > 1 else {}
    yield {}
    yield checkpointing
    yield checkpointing | by_row
    if most_cards == 1 and not config.use_peft:
        yield checkpointing | {"dtype": "bfloat16"}
        yield checkpointing | {"dtype": "bfloat16"} | by_row
        yield checkpointing | {"dtype": "bfloat16", "optim": "adafactor"} | by_row
    cards = 2
    while cards <= most_cards and not (config.load_in_4bit or config.load_in_8bit):
        sharded = {"distributed_strategy": "fsdp2", "num_processes": cards}
        yield checkpointing | sharded
        yield checkpointing | sharded | by_row
        cards *= 2


def fit(fields: Mapping[str, Any], config: RunConfig, card: int, most_cards: int = 1) -> Fit | None:
    """Return the first of `ladder` that fits a card of so many gigabytes; None where none does."""
    for changes in ladder(config, most_cards):
        parts = memory_plan(fields, dataclasses.replace(config, **changes), changes.get("num_processes", 1))
        if parts is not None and peak_mb(parts) <= room_mb(card):
            return Fit(changes=changes, megabytes=peak_mb(parts))
    return None


# ---------------------------------------------------------------- in words


def memory_notes(config: RunConfig, processes: int) -> list[str]:
    """Return what a dry run says of memory: sentences, none on a CPU."""
    if config.use_cpu:
        return []
    fields = config_of_model(config)
    parts = None if fields is None else memory_plan(fields, config, processes)
    if fields is None or parts is None:
        why = "its config.json isn't on this machine" if fields is None else "its weights can't be counted before"
        return [f"memory: known once the model is loaded ({why})"]
    whole = peak_mb(parts)
    cards = [card for card in CARDS if whole <= room_mb(card)]
    notes = [f"memory on a GPU: {in_words(parts)}"]
    if cards:
        return [f"{notes[0]}; fits a card of {cards[0]} GB"]
    found = fit(fields, config, max(CARDS)) if processes == 1 else None
    instead = f"; it would with {settings(found.changes)} ({found.megabytes / 1024:.0f} GiB)" if found else ""
    return [f"{notes[0]}; doesn't fit a card of {max(CARDS)} GB{instead}"]


def settings(changes: Mapping[str, Any]) -> str:
    """Return "gradient_checkpointing: true, dtype: bfloat16"."""
    return ", ".join(f"{name}: {str(value).lower()}" for name, value in changes.items())


def config_of_model(config: RunConfig) -> Mapping[str, Any] | None:
    """Return the text part of the config.json of a run's model (of an adapter, of its base), from its folder or from
    what the hub's cache has; None where it is in neither. Asks no hub. Raises ConfigError for a file that isn't one."""
    name = base_of(config.model, config.lora_base_model)
    place = Path(name) / "config.json"
    if not Path(name).exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(name, "config.json", revision=config.model_revision)
        except HFValidationError:  # neither a folder nor an id: the run says what is near it
            return None
        if not isinstance(found, str):
            return None
        place = Path(found)
    if not place.is_file():
        return None
    problem = settings_problem(place)
    if problem is not None:
        raise ConfigError(f"model: {place}: {problem}")
    fields = json.loads(place.read_text(encoding="utf-8"))
    return fields.get("text_config") or fields
