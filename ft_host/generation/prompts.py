"""Prompts: each runs through the model once, whatever the number of completions it gets."""

from __future__ import annotations

import contextlib
import inspect
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ft_host.generation.cache import Pair
from ft_host.generation.jobs import Job
from ft_host.models.masks import padded
from ft_host.util.transfer import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = 2048  # about so many tokens of prompts are prefilled at a time, padding included


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name of forward's argument for keys and values: "cache", up to transformers 5.23 "past_key_values".
    None where it has none."""
    arguments = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in arguments), None)


def can_decode(model: PreTrainedModel) -> bool:
    """Return whether the model's whole state is keys and values of each token, and it accepts position ids."""
    arguments = inspect.signature(model.forward).parameters
    if cache_argument(model) is None or not {"position_ids", "attention_mask", "logits_to_keep"} <= set(arguments):
        return False
    config = model.config.get_text_config(decoder=True)
    # Chunked attention depends on absolute positions, which columns aren't. Only models with chunks have this field.
    if model.config.is_encoder_decoder or model._is_stateful or getattr(config, "attention_chunk_size", None):
        return False
    return {type(layer) for layer in DynamicCache(config=config).layers} <= {DynamicLayer, DynamicSlidingWindowLayer}


def without_routing(model: PreTrainedModel) -> dict[str, bool]:
    """Return the argument by which a mixture of experts leaves out its load-balancing loss.

    A config with `output_router_logits` would have it made of each token, for a mask of all columns, which fails.
    """
    return (
        {"output_router_logits": False} if "output_router_logits" in inspect.signature(model.forward).parameters else {}
    )


@dataclass
class Prompt:
    """A prompt and the jobs that wait for it.

    After prefill: its keys and values, (heads, length, width) of each layer, the (V,) logits of the next token, and its
    token ids on the device.
    """

    ids: list[int]
    jobs: deque[Job] = field(default_factory=deque)
    arrived: int = 0  # in an engine: those that arrived earlier go first, whatever their length
    states: list[Pair] | None = None
    logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


def prompts_of(jobs: list[Job]) -> deque[Prompt]:
    """Group jobs by prompt, the longest prompt first."""
    prompts: dict[tuple[int, ...], Prompt] = {}
    for job in jobs:
        prompts.setdefault(tuple(job.prompt_ids), Prompt(job.prompt_ids)).jobs.append(job)
    return deque(sorted(prompts.values(), key=lambda prompt: -len(prompt.ids)))


def next_prompts(waiting: deque[Prompt], places: int) -> list[Prompt]:
    """Return the first prompts: as many as have jobs for `places`, or PREFILL_TOKENS with padding. At least one."""
    chosen: list[Prompt] = []
    for prompt in waiting:
        if chosen and (places <= 0 or (len(chosen) + 1) * len(chosen[0].ids) > PREFILL_TOKENS):
            break
        chosen.append(prompt)
        places -= len(prompt.jobs)
    return chosen


def prefill(model: PreTrainedModel, prompts: list[Prompt]) -> None:
    """Run the model on prompts, padded on the left."""
    width = max(len(prompt.ids) for prompt in prompts)
    lengths = [len(prompt.ids) for prompt in prompts]
    ids = torch.tensor([[0] * (width - len(prompt.ids)) + prompt.ids for prompt in prompts])
    starts = torch.tensor([width - length for length in lengths])[:, None]
    ids, starts = to_device([ids, starts], model.device)
    column = torch.arange(width, device=model.device)
    mask = column >= starts if min(lengths) < width else None
    # Not made from the model's config: sliding layers would keep only the columns of their window.
    cache = DynamicCache()
    with contextlib.nullcontext() if mask is None else padded():
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(column - starts).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(model): cache},
            **without_routing(model),
        )
    logits = output.logits[:, -1].float()
    for row, prompt in enumerate(prompts):
        own = (row, slice(None), slice(width - len(prompt.ids), None))
        prompt.states = [(layer.keys[own], layer.values[own]) for layer in cache.layers]
        prompt.logits, prompt.tokens = logits[row], ids[row, width - len(prompt.ids) :]
