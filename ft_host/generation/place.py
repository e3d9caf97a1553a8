"""The models of a run as generation needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from ft_host.config.rollout import RolloutConfig
from ft_host.generation.frames import GRAPHS_USED, way_of
from ft_host.models.checkpointing import sizes_of
from ft_host.models.shards import held_bytes
from ft_host.util.devices import memory_of
from ft_host.util.memory import FEW_ROWS, rows_that_fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ft_host.models.policy import Policy
    from ft_host.run import Run


@contextlib.contextmanager
def answering(run: Run, role: str) -> Iterator[Policy]:
    """Give the model of that role. All ranks must enter it."""
    if role == "policy":
        yield run.policy
        return
    with run.models[role].answering() as policy:
        yield policy


@contextlib.contextmanager
def generating(run: Run, policy: Policy) -> Iterator[None]:
    """Put a model in generation mode: without dropout or checkpointing, and without its generation defaults.

    transformers would merge the model's own temperature, top_k or repetition penalty into ours.
    """
    model = policy.causal_lm
    was_training, defaults = policy.training, model.generation_config
    policy.eval()
    model.generation_config = GenerationConfig()
    try:
        with torch.no_grad(), run.accelerator.autocast():
            yield
    finally:
        model.generation_config = defaults
        policy.train(was_training)


def rows_of(run: Run) -> int:
    """Return how many completions are generated at a time: decode_batch_size, or what suits the device.

    What suits it goes by the memory that it has in all, less the policy and what an optimizer keeps for it, so that a
    run that is resumed has the same.
    """
    config, device = run.config, run.device
    if config.decode_batch_size is not None:
        return config.decode_batch_size
    if device.type == "cpu":
        return FEW_ROWS
    shape, left = sizes_of(run.policy.config.get_text_config()), memory_of(device).total
    for parameter in run.policy.parameters():
        # With its gradient, and two moments of Adam's
        left -= held_bytes(parameter) * (4 if parameter.requires_grad else 1)
    width = 2 if run.accelerator.mixed_precision != "no" else run.policy.causal_lm.dtype.itemsize
    tokens = (config.max_length or 2048) + config.max_completion_length
    return rows_that_fit(left, tokens * shape.layers * shape.cached * width)


def generation_facts(run: Run) -> dict[str, Any]:
    """Return what a run that generates with its own models records of that before it begins."""
    config = run.config
    generates = config.eval_reward or isinstance(config, RolloutConfig)
    return {"plan/decode_batch_size": rows_of(run)} if generates and config.backend == "transformers" else {}


def tell_way(run: Run, model: PreTrainedModel, role: str) -> None:
    """Say once how tokens are decoded, and record it of the policy, on devices where there is more than one way."""
    way = way_of(model)
    if way is None or role != "policy":
        return
    text = f"decoding: {way}"
    if text not in run.said:
        run.record_facts({"plan/decoding": way})
        run.say_once(text, "info" if way == GRAPHS_USED else "warning")
