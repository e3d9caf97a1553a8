"""Whether a model's numbers in a small flat batch are its own for single rows: values, gradients, and what leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ft_host.batch import Batch, Segment, flat_batch
from ft_host.models.layout import NotFlat
from ft_host.models.positions import table_of
from ft_host.models.shards import reshard, root_whole
from ft_host.util import devices

if TYPE_CHECKING:
    from ft_host.models.policy import Policy

# Tokens of the probe's three rows, and of the second row's prompt. What is compiled is compiled for as many tokens as
# training has; elsewhere a few do.
FEW, MANY = ((9, 20, 5), 13), ((70, 150, 80), 100)
WIDE = (torch.float32, torch.float64)
LEAK = 1e-5  # of values and gradients, exact ones
OFF = 0.3  # of a gradient, as a share: more than any rounding, and less than what a wrong mask does


def _rows_alone(policy: Policy, rows: list[list[int]]) -> torch.Tensor:
    """Return the model's own values for each row alone, from its own attention and full logits.

    These are log-probs of the tokens after the first, or the score of a reward model.
    """
    out = []
    for row in rows:
        ids = torch.tensor([row], device=policy.device)
        with root_whole(policy):
            logits = policy.model(input_ids=ids, use_cache=False).logits[0]
        if policy.head is not None:
            out.append(logits.float())
            continue
        logs = logits[:-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        out.append(logs.gather(1, ids[0, 1:, None]).squeeze(1))
    return torch.cat(out)


def forest_of(policy: Policy, rows: list[list[int]], prompt: int) -> Batch:
    """Return a flat batch with the second row as a prompt of some tokens and a child, between the other two rows.
    Without a prompt (0) it is a row like the others."""
    first, second, third = rows
    parts = [
        Segment(input_ids=second[:prompt], labels=second[:prompt], row=1),
        Segment(input_ids=second[prompt:], labels=second[prompt:], row=1, parent=1),
    ]
    return flat_batch(
        [
            Segment(input_ids=first, labels=first, row=0),
            *(parts if prompt else [Segment(input_ids=second, labels=second, row=1)]),
            Segment(input_ids=third, labels=third, row=2),
        ],
        num_rows=3,
        pad_token_id=None if policy.head is None else policy.config.pad_token_id,
    ).to(policy.device)


def _sizes(policy: Policy) -> tuple[tuple[int, int, int], int]:
    most = table_of(policy.causal_lm)
    fits = most is None or most >= max(MANY[0])
    return MANY if policy.device.type != "cpu" and fits else FEW


class _Words:
    """The states that a model's layers start from, as leaves, while it is entered: what gradients are taken of.

    So the backward pass goes through each layer and makes no gradient of a weight.
    """

    def __init__(self, policy: Policy) -> None:
        self.module = policy.causal_lm.get_input_embeddings()
        self.states: list[torch.Tensor] = []

    def __enter__(self) -> list[torch.Tensor]:
        self.hook = self.module.register_forward_hook(self._keep)
        return self.states

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _keep(self, module: nn.Module, given: tuple[torch.Tensor, ...], states: torch.Tensor) -> torch.Tensor:
        self.states.append(states.detach().requires_grad_())
        return self.states[-1]


def _gradients(values: torch.Tensor, states: list[torch.Tensor]) -> torch.Tensor:
    """Return (T, H): the gradient of the sum of values, by the token whose state it is of."""
    return torch.cat([each.flatten(0, -2).float() for each in torch.autograd.grad(values.sum(), states)])


def probe(policy: Policy, shared: bool = True) -> tuple[float, float]:
    """Return the largest difference between a small flat batch through the policy and its rows alone, and the leak.

    The difference is in log-probs (scores, for a reward model). Of many tokens in a type that rounds nine of ten count:
    one that goes to another expert says nothing of the layout. The leak is how much values of later rows change when
    all tokens of the first row change. It contains no rounding, so that it shows state that leaks between rows in half
    precision too.

    `shared`: rows share a prompt. Runs the policy in training mode as well: what a kernel can't do only there (dropout)
    fails here and not in the first step. What is trained has a backward pass too: the leak is then at least the share
    of the later rows' gradient that goes to the first row. Raises NotFlat where gradients aren't those of rows alone.
    Restores random states and train mode.
    """
    generator = torch.Generator().manual_seed(0)
    size = policy.config.vocab_size
    tokens, prompt = _sizes(policy)
    rows = [torch.randint(size, (n,), generator=generator).tolist() for n in tokens]
    want, later = "logp", len(rows[0]) - 1
    if policy.head is not None:
        want, later = "score", 1
        rows[1][-2:] = [policy.config.pad_token_id] * 2  # reveals a model that reads its score elsewhere
    batch = forest_of(policy, rows, prompt if shared else 0)
    others = [[(token + size // 2) % size for token in rows[0]], *rows[1:]]
    training = policy.training
    # a rectangle goes through the model's own attention
    trains = policy.kernel != "none" and any(parameter.requires_grad for parameter in policy.parameters())
    try:
        with torch.no_grad(), devices.forked_random(policy.device):
            policy.train()
            policy(batch, want=(want,))
            policy.eval()
            changed = policy(forest_of(policy, others, prompt if shared else 0), want=(want,))[want]
            with torch.set_grad_enabled(trains), _Words(policy) as states:
                ours = policy(batch, want=(want,))[want]
                found = _gradients(ours[later:], states) if trains else None
            # where rows go through a sharded model by themselves, its head is whole for the forward pass alone
            whole = trains and not isinstance(policy, FSDPModule)
            with torch.set_grad_enabled(whole), _Words(policy) as states:
                theirs = _rows_alone(policy, rows)
                expected = _gradients(theirs[later:], states[1:]) if whole else None
    finally:
        policy.train(training)
        reshard(policy)
    off, strayed = (0.0, 0.0) if found is None else _compare(found, len(rows[0]), expected)
    apart = (ours - theirs).detach().abs().float()
    difference = apart.quantile(0.9) if len(apart) > sum(FEW[0]) and rounds(policy) else apart.max()
    leak = max(strayed, float((ours - changed).detach()[later:].abs().max()))
    if not off <= OFF and not leak > LEAK:  # a leak says more; neither is a number where gradients aren't finite
        raise NotFlat(f"gradients differ by {100 * off:.2g} % from those of single rows")
    return float(difference), leak


def _compare(found: torch.Tensor, first: int, expected: torch.Tensor | None) -> tuple[float, float]:
    """Return by how much a gradient (T, H) differs from that of rows alone, where that is known, and how much of it
    goes to the first tokens, which have no part in it: shares of its norm."""
    rest = found[first:]
    apart = rest - (rest if expected is None else expected)
    return float(apart.norm() / rest.norm()), float(found[:first].norm() / rest.norm())


def rounds(policy: Policy) -> bool:
    """Return whether products are in 16 bits or fewer."""
    held = any(parameter.dtype not in WIDE for parameter in policy.model.parameters())
    return held or torch.is_autocast_enabled(policy.device.type)
