"""FSDP2: torch's `fully_shard`, one group per decoder layer and one for the rest, after LoRA has been attached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ft_host.distributed.processes import precision
from ft_host.models.load import decoder_layers
from ft_host.models.policy import Policy
from ft_host.models.shards import put, take, world_mesh

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def shard(policy: Policy, config: RunConfig) -> Policy:
    """Shard the policy over all ranks, in place, and then do what waited for that (see `Policy.waiting`).

    Embedding and head, which may be one tensor, are in the root's group: they are whole during the root's forward,
    where the head reads them. Weights that were cut when they were loaded are moved, others are cut here.
    """
    mesh = world_mesh(policy.device)
    half = precision(config, policy.device) == "bf16"
    types = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else None
    arguments = {"mesh": mesh} | ({"mp_policy": types} if types else {})
    models = [policy, *(companion for companion in policy.companions.values() if isinstance(companion, Policy))]
    taken = take(policy)
    for model in models[::-1]:
        for layer in decoder_layers(model)[::-1]:  # the inner of two (Mamba's) first
            fully_shard(layer, **arguments)
        if model is not policy:  # a separate group: its forward runs within the policy's
            fully_shard(model, **arguments)
    fully_shard(policy, **arguments)
    put(taken)
    for model in models:  # the policy first: whichever is called first is the root
        for work in model.waiting:
            work()
        model.waiting.clear()
    return policy
