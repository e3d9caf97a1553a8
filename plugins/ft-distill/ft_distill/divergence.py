"""How far a student's distribution of a token is from its teacher's: pure functions, with beta as TRL has it.

0: KL(teacher | student)    1: KL(student | teacher)    between them, with m = (1 - beta) p_student + beta p_teacher:

beta KL(teacher | m) + (1 - beta) KL(student | m)                   (arXiv 2306.13649, eq. 1, generalised)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Values = dict[str, torch.Tensor]


# Same as ft_gold.losses.kl, ft_sdft.losses.kl
def kl(of: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(of | other) of log-probs (n, K), over the last dimension: (n,)."""
    return (of.exp() * (of - other)).sum(-1)


# Same as ft_gold.losses.generalised_jsd
# Same values as ft_sdft.losses.divergence
def generalised_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Of log-probs (n, K) to (n,). Bounded between the ends; at them, the KL that their limits come from, scaled up:
    the limit itself is 0."""
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


# Same as ft_sdft.losses.with_tail
def with_tail(logps: torch.Tensor) -> torch.Tensor:
    """Log-probs (n, k) of some tokens, with that of all others together behind them: (n, k + 1)."""
    held = logps.logsumexp(-1, keepdim=True).clamp(max=-1e-7)  # where they hold all but nothing
    return torch.cat([logps, torch.log(-torch.expm1(held))], -1)


def topk_jsd(student: torch.Tensor, ids: torch.Tensor, teacher: torch.Tensor, beta: float, tail: bool) -> torch.Tensor:
    """Where all that is known of the teacher are the log-probs (n, k) of the tokens `ids` (n, k), which differ from
    each other: (n,) from the student's log-probs (n, V). All other tokens are one event (`tail`), or left out on both
    sides.
    """
    chosen = student.gather(-1, ids)
    if tail:
        return generalised_jsd(with_tail(chosen), with_tail(teacher), beta)
    return generalised_jsd(chosen.log_softmax(-1), teacher.log_softmax(-1), beta)


# ---------------------------------------------------------------- for a tile of targets


@dataclass(frozen=True, kw_only=True)
class Taught:
    """N targets: which token is there."""

    targets: torch.Tensor  # (N,)
    beta: float

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, units: slice) -> tuple[torch.Tensor, Values]:
        """(n, V) and (n, V') logits of the targets `units` to the sum of their losses, and (n,) values of each."""
        size = min(student.shape[-1], teacher.shape[-1])  # rows beyond it are padding of one of the two
        ours, theirs = student[:, :size].log_softmax(-1), teacher[:, :size].log_softmax(-1)
        losses = generalised_jsd(ours, theirs, self.beta)
        agree = ours.argmax(-1) == theirs.argmax(-1)
        with torch.no_grad():
            unsure = {"teacher_entropy": -(theirs.exp() * theirs).sum(-1)}
        return losses.sum(), values_of(ours, losses, agree, self.targets[units]) | unsure


@dataclass(frozen=True, kw_only=True)
class TaughtByTop:
    """The same with a teacher of whom the likeliest tokens alone are known: `ids` and `teacher` (N, k), likeliest
    first."""

    targets: torch.Tensor
    ids: torch.Tensor
    teacher: torch.Tensor
    tail: bool
    beta: float

    def __call__(self, student: torch.Tensor, nothing: None, units: slice) -> tuple[torch.Tensor, Values]:
        ours, ids = student.log_softmax(-1), self.ids[units]
        losses = topk_jsd(ours, ids, self.teacher[units].to(ours.dtype), self.beta, self.tail)
        return losses.sum(), values_of(ours, losses, ours.argmax(-1) == ids[:, 0], self.targets[units])


def values_of(logps: torch.Tensor, losses: torch.Tensor, agree: torch.Tensor, targets: torch.Tensor) -> Values:
    """From the student's log-probs (n, V) and the tokens that are there, (n,)."""
    with torch.no_grad():
        chosen = logps.gather(-1, targets.clamp(max=logps.shape[-1] - 1)[:, None])[:, 0]
        return {"losses": losses, "logps": chosen, "entropy": -(logps.exp() * logps).sum(-1), "agree": agree.float()}
