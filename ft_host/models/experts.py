"""Load balance of a mixture of experts over a step, from its routers' logits. Without gradient.

The figures are for the whole step, all micro-batches and ranks: a maximum load can't be averaged, so the counts of each
layer and expert are summed and sent once per step. A prompt that rows share counts once for each of them, so that the
figures don't depend on micro-batching.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ft_host.batch import Batch
from ft_host.util import devices
from ft_host.util.transfer import to_device

DEAD = 1e-3  # an expert is dead below this part of its uniform share
TOLD_FROM = 100  # least tokens in a uniform share; with fewer, an expert may get none by chance


@dataclass
class Routing:
    """The routing of one forward: how often each expert was chosen (L, E), the summed router entropy, and the number of
    terms.

    The entropy is a share of ln E, summed over layers and tokens; the number is layers times tokens.
    """

    counts: torch.Tensor
    entropy: torch.Tensor
    tokens: torch.Tensor


def routing_of(router_logits: tuple[torch.Tensor, ...], weight: torch.Tensor, top_k: int) -> Routing:
    """`router_logits`: for each layer (T, E). `weight`: (T,), how often each token counts; 0 for padding."""
    with torch.no_grad():
        device = router_logits[0].device
        wide = devices.widest(device)
        [weight] = to_device([weight.flatten()], device)
        weight = weight.to(wide)
        counts, entropies = [], []
        for logits in router_logits:
            logits = logits.detach().flatten(0, -2).float()
            chosen = logits.topk(top_k, dim=-1).indices  # (T, top_k)
            count = torch.zeros(logits.shape[-1], dtype=wide, device=device)
            counts.append(count.index_add_(0, chosen.flatten(), weight.repeat_interleave(top_k)))
            logs = logits.log_softmax(-1)
            entropy = -(logs.exp() * logs).sum(-1) / math.log(max(logits.shape[-1], 2))
            entropies.append(torch.dot(entropy.to(wide), weight))
        return Routing(torch.stack(counts), torch.stack(entropies).sum(), len(counts) * weight.sum())


def times_shared(batch: Batch) -> torch.Tensor:
    """Return (T,): the number of sequences that each token of a flat batch is in, which is the number of leaves below
    it.

    0 without rows.
    """
    leaves = [0] * len(batch.parents)
    inner = set(batch.parents)
    for index in reversed(range(len(batch.parents))):
        leaves[index] += index not in inner
        if batch.parents[index] >= 0:
            leaves[batch.parents[index]] += leaves[index]
    counts = leaves if not batch.empty else [0] * len(leaves)
    return torch.tensor(counts).repeat_interleave(torch.tensor(batch.lengths))


class ExpertLoad:
    """Sums the routing of a step's micro-batches on their device."""

    def __init__(self) -> None:
        self.sums: Routing | None = None

    def add(self, routing: Routing | None) -> None:
        if routing is None:
            return
        if self.sums is None:
            self.sums = routing
            return
        old = self.sums
        self.sums = Routing(old.counts + routing.counts, old.entropy + routing.entropy, old.tokens + routing.tokens)

    def local(self) -> tuple[torch.Tensor, float, float] | None:
        """Return this rank's sums, to be sent between ranks."""
        if self.sums is None:
            return None
        counts = self.sums.counts
        read = torch.cat([counts.flatten(), self.sums.entropy[None], self.sums.tokens[None]]).cpu()  # one look
        return read[:-2].view_as(counts), float(read[-2]), float(read[-1])


def load_metrics(ranks: list[Any]) -> dict[str, float]:
    """Return a step's metrics of its experts, from each rank's `ExpertLoad.local()`; empty for a model
    without experts.

        moe/max_violation  (largest load - mean) / mean of the layer where it is largest; 0 where loads are equal
        moe/dead_experts   the share of experts with less than a thousandth of the uniform share, mean over layers
        moe/router_entropy of the routers' probabilities, mean over layers and tokens, as a share of ln E
    """
    loads = [rank for rank in ranks if rank is not None]
    if not loads:
        return {}
    counts = torch.stack([rank[0] for rank in loads]).sum(0)  # (L, E)
    tokens = sum(rank[2] for rank in loads)
    if not tokens:
        return {}
    uniform = counts.mean(1, keepdim=True)
    out = {
        "moe/max_violation": float((counts / uniform).max()) - 1,
        "moe/router_entropy": sum(rank[1] for rank in loads) / tokens,
    }
    if uniform.min() >= TOLD_FROM:
        out["moe/dead_experts"] = float((counts < DEAD * uniform).double().mean())
    return out
