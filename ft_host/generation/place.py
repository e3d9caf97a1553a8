"""The models of a run as generation needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
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
