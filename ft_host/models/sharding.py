"""FSDP2: torch's `fully_shard`, one group per decoder layer and one for the rest, after LoRA has been attached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from ft_host.distributed.processes import precision
from ft_host.models.load import decoder_layers
from ft_host.models.policy import Policy

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def shard(policy: Policy, config: RunConfig) -> Policy:
    """Shard the policy over all ranks, in place.

    Embedding and head, which may be one tensor, are in the root's group: they are whole during the root's forward,
    where the head reads them.
    """
    mesh = init_device_mesh(policy.device.type, (torch.distributed.get_world_size(),))
    half = precision(config, policy.device) == "bf16"
    types = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else None
    arguments = {"mesh": mesh} | ({"mp_policy": types} if types else {})
    models = [policy, *(companion for companion in policy.companions.values() if isinstance(companion, Policy))]
    for model in models[::-1]:
        for layer in decoder_layers(model):
            fully_shard(layer, **arguments)
        if model is not policy:  # a separate group: its forward runs within the policy's
            fully_shard(model, **arguments)
    return fully_shard(policy, **arguments)


def reshard(policy: Policy) -> None:
    """Free whole weights. A backward pass does this by itself.

    After an evaluation the root's weights would stay whole, and a state dict would hold other parameters than the
    optimizer. Does nothing to a policy that isn't sharded.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
