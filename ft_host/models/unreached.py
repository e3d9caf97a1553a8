"""Freezes what no batch of texts reaches: towers and projectors of a vision-language model, layers for its images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ft_host.config.adapters import ALL_LINEAR
from ft_host.errors import ConfigError
from ft_host.models.adapters import take_off
from ft_host.models.probe import forest_of
from ft_host.models.reach import outside_text, within, without_graph
from ft_host.models.shards import reshard
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.config import RunConfig
    from ft_host.models.policy import Policy


def trial(policy: Policy) -> torch.Tensor:
    """Return values of a small batch with the graph behind them, in training mode. Restores random states and mode."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(policy.config.vocab_size, (n,), generator=generator).tolist() for n in (3, 16, 2)]
    want, training = "logp" if policy.head is None else "score", policy.training
    try:
        with torch.enable_grad(), devices.forked_random(policy.device):
            policy.train()
            return policy(forest_of(policy, rows, 13), want=(want,))[want].sum()
    finally:
        policy.train(training)
        reshard(policy)


def freeze_unreached(policy: Policy, config: RunConfig) -> None:
    """Freeze the trained parameters that no text reaches: towers and projectors of a vision-language model, layers for
    its images. Raises ConfigError for an adapter there, of which nothing would be trained.

    Otherwise DDP would wait for their gradients, and an optimizer decay them.
    """
    outside = outside_text(policy.causal_lm, policy.head)
    for name, parameter in policy.causal_lm.named_parameters():
        if within(name, outside):
            parameter.requires_grad_(False)
    left = without_graph(policy, trial(policy))
    adapted = [name for name in left if "lora_" in name]
    if adapted and config.lora_target_modules == ALL_LINEAR:
        off = take_off(policy.model, [name.removeprefix("model.") for name in adapted])
        policy.notes.append(
            f"all-linear leaves out {', '.join(off[:3])}{' …' if len(off) > 3 else ''} ({len(off)} modules): no text "
            "would go through an adapter there"
        )
        left = [name for name in left if name not in adapted]
    elif adapted:
        raise ConfigError(
            f"lora_target_modules: no text goes through {len(adapted)} of the adapter's tensors, so they would not be "
            f"trained, for instance {adapted[0].removeprefix('model.')}; leave those modules out"
        )
    parameters = {f"model.{name}": parameter for name, parameter in policy.model.named_parameters()}
    for name in left:
        parameters[name].requires_grad_(False)
    names = outside + [name.removeprefix("model.") for name in left]
    if not names:
        return
    whole = sum(p.numel() for p in parameters.values())
    policy.unreached = sum(p.numel() for name, p in policy.causal_lm.named_parameters() if within(name, outside))
    policy.unreached += sum(parameters[name].numel() for name in left)
    share = 100 * policy.unreached / whole
    named = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''} ({share:.1f} % of the weights)"
    adapter = policy.model is not policy.causal_lm
    policy.notes.append(
        f"no text goes through {named}: {'no adapter is put there' if adapter else 'frozen, and saved as it is'}"
    )
