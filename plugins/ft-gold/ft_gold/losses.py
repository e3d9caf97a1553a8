"""How far a student's distribution is from that of a teacher with other tokens: pure functions in a table by name.

What is expected at a unit (see `ft_gold.tokens`), which may be several tokens of the one and one of the other:

    text          p(. | before), with one event in place of all tokens that begin with the unit's text w: that w comes.
                  It has Π_k p(y_k | ...) and what these tokens have; the first of several keeps what is left of it
    observed      p(. | before) · Π_{k>1} p(y_k | ...)         the first token's, and what followed
    bayesian      p(. | ..., y_{n-1}) · Π_{k<n} p(y_k | ...)   the last token's, and what came before

The first adds up to 1, and what the two are asked for is the same text. The others are TRL's: they don't add up to 1,
and where the text is one token of the student's and "a", "b" of the teacher's, they teach the student to say "a" (or
"b") in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from ft_host.api import to_device

Values = dict[str, torch.Tensor]


# ---------------------------------------------------------------- distributions


# Same as ft_distill.divergence.kl
def kl(of: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(of | other) of log-probs (n, K), over the last dimension: (n,)."""
    return (of.exp() * (of - other)).sum(-1)


# Same as ft_distill.divergence.generalised_jsd
def generalised_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Of log-probs (n, K) to (n,) (arXiv 2306.13649, eq. 1). beta 0 is KL(teacher | student), 1 KL(student |
    teacher)."""
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def jsd_of_parts(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """The same of log-probs that don't add up to 1. The KL divergences are generalised to those, by the difference of
    what the two hold in all: KL(p | q) - sum p + sum q is least where p is q; without it, KL(student | teacher) is
    least at a student of 1/e of its teacher. Between the ends the differences cancel."""
    more = {0.0: 1, 1.0: -1}.get(beta, 0)
    found = generalised_jsd(student, teacher, beta)
    return found + more * (student.exp().sum(-1) - teacher.exp().sum(-1)) if more else found


def sorted_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the sum of differences between the likeliest, the second likeliest, and so on.

    From probabilities (n, K) and (n, K') to (n,) (universal logit distillation, arXiv 2402.12030, eq. 8). The teacher's
    have no gradient.
    """
    size = max(student.shape[-1], teacher.shape[-1])
    both = [pad(values, (size - values.shape[-1], 0)) for values in (ascending(student), ascending(teacher))]
    return (both[0] - both[1]).abs().sum(-1)


def ascending(values: torch.Tensor) -> torch.Tensor:
    """Sort each row. On a CPU by numpy: for 32k values torch's sort takes 25 times as long as numpy's, 5 times its
    argsort.
    """
    if values.device.type != "cpu":
        return values.sort(-1).values
    if not values.requires_grad:
        return torch.from_numpy(np.sort(values.numpy(), -1))
    return values.gather(-1, torch.from_numpy(np.argsort(values.detach().numpy(), -1)))


# ---------------------------------------------------------------- units


NEVER = -1e4  # stands for log 0, without infinities


@dataclass(frozen=True)
class Text:
    """Which tokens begin with the text of each of u units: those whose rank, (V,), is in a span, (u, 2)."""

    ranks: torch.Tensor
    spans: torch.Tensor


def by_text(
    logps: torch.Tensor,
    chosen: torch.Tensor,
    starts: torch.Tensor,
    sizes: torch.Tensor,
    firsts: torch.Tensor,
    text: Text,
) -> torch.Tensor:
    """(u, V + 1) log-distributions of u units, the last of which is that the unit's text comes, whatever comes behind
    it in the same token. Unit i has the `sizes[i]` rows from `starts[i]` on of `logps` (n, V); both are on the CPU.
    `chosen` (n,): the log-probs of the tokens that are there, `firsts` (u,) the first token of each."""
    where, several = to_device([starts, sizes > 1], logps.device)
    rows, first = logps.index_select(0, where), chosen.index_select(0, where)
    inside = (text.ranks >= text.spans[:, :1]) & (text.ranks < text.spans[:, 1:])
    event = rows.masked_fill(~inside, NEVER).logsumexp(-1)
    rows = rows.masked_fill(inside, NEVER)
    if int(sizes.max()) > 1:
        path = first + of_others(chosen, starts, sizes, starts)
        event = torch.where(several, torch.logaddexp(path, event), event)
        left = first + torch.log(-torch.expm1((path - first).clamp(max=-1e-7)))
        rows = rows.scatter(1, firsts[:, None], torch.where(several, left, NEVER)[:, None])
    return torch.cat([rows, event[:, None]], -1)


def ranks_of(ranks: tuple[torch.Tensor, torch.Tensor], sizes: tuple[int, int], device: torch.device):
    """Return the ranks of both vocabularies, with -1 for rows of embeddings without a token."""
    padded = [pad(each, (0, size - len(each)), value=-1) for each, size in zip(ranks, sizes, strict=True)]
    return tuple(to_device(padded, device))


def observed(logps, chosen, starts, sizes, firsts, text) -> torch.Tensor:
    """Return the same for the first token: (u, V)."""
    return scaled(logps, chosen, starts, sizes, starts)


def bayesian(logps, chosen, starts, sizes, firsts, text) -> torch.Tensor:
    """Return the same for the last token: (u, V)."""
    return scaled(logps, chosen, starts, sizes, starts + sizes - 1)


def scaled(logps: torch.Tensor, chosen: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, base: torch.Tensor):
    """Return the log-distributions at the rows `base` (u,), times the probabilities of the units' other
    tokens: (u, V).
    """
    found = logps if len(base) == len(logps) else logps.index_select(0, *to_device([base], logps.device))
    return found if int(sizes.max()) == 1 else found + of_others(chosen, starts, sizes, base)[:, None]


def of_others(chosen: torch.Tensor, starts: torch.Tensor, sizes: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return (u,) sums of the log-probs of each unit's tokens except that at `base`."""
    unit = torch.repeat_interleave(sizes)
    row = torch.arange(len(unit)) + torch.repeat_interleave(starts - (sizes.cumsum(0) - sizes), sizes)
    beside = row != base[unit]
    unit, row = to_device([unit[beside], row[beside]], chosen.device)
    return chosen.new_zeros(len(sizes)).index_add(0, unit, chosen[row])


MERGES = {"text": by_text, "observed": observed, "bayesian": bayesian}


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Shared:
    """The tokens that both distributions have: places (K,) of each, and all others, (V - K,) and (V' - K,)."""

    ours: torch.Tensor
    theirs: torch.Tensor
    rest: torch.Tensor
    their_rest: torch.Tensor
    partner: torch.Tensor  # (V',) the student's place for each of the teacher's, -1 where there is none


def shared_of(
    ids: tuple[torch.Tensor, torch.Tensor], sizes: tuple[int, int], device: torch.device, strategy: str
) -> Shared:
    """From the ids of `Meeting.shared` and the sizes of both models' logits. By text both have one place more, for
    that."""
    ours, theirs = ids
    if strategy == "text":
        ours, theirs = (
            torch.cat([each, each.new_tensor([size])]) for each, size in zip((ours, theirs), sizes, strict=True)
        )
        sizes = sizes[0] + 1, sizes[1] + 1
    rests = [
        torch.ones(size, dtype=torch.bool).index_fill(0, each, False).nonzero()[:, 0]
        for each, size in ((ours, sizes[0]), (theirs, sizes[1]))
    ]
    partner = torch.full((sizes[1],), -1).index_copy(0, theirs, ours)
    return Shared(*to_device([ours, theirs, *rests, partner], device))


@dataclass(frozen=True, kw_only=True)
class Weights:
    matched: float
    unmatched: float
    beta: float


def hybrid(
    student: torch.Tensor, teacher: torch.Tensor, shared: Shared, weights: Weights
) -> tuple[torch.Tensor, Values]:
    """Compare shared tokens with each other, and all others by sorted probabilities.

    Log-distributions of units, (u, V) and (u, V'), to (u,).
    """
    matched = jsd_of_parts(student[:, shared.ours], teacher[:, shared.theirs], weights.beta)
    unmatched = sorted_distance(student[:, shared.rest].exp(), teacher[:, shared.their_rest].exp())
    with torch.no_grad():
        mass = teacher[:, shared.theirs].logsumexp(-1) - teacher.logsumexp(-1)
        agree = student.argmax(-1) == shared.partner[teacher.argmax(-1)]
    values = {"matched": matched, "unmatched": unmatched, "mass": mass.exp(), "agree": agree.to(matched.dtype)}
    return weights.matched * matched + weights.unmatched * unmatched, values


def uld(student: torch.Tensor, teacher: torch.Tensor, shared: None, weights: Weights) -> tuple[torch.Tensor, Values]:
    """Compare all tokens by sorted probabilities."""
    return sorted_distance(student.exp(), teacher.exp()), {}


LOSSES: dict[str, Callable[..., tuple[torch.Tensor, Values]]] = {"hybrid": hybrid, "uld": uld}
VALUES = {"hybrid": ("matched", "unmatched", "mass", "agree"), "uld": ()}


# ---------------------------------------------------------------- for a tile (ft_host.models.tiled_divergence)


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """U units over N targets of the student and M of the teacher."""

    units: torch.Tensor  # (U, 2) on the CPU: how many of the student's and of the teacher's targets each has
    weights: torch.Tensor  # (U,) of each unit's comparison in the loss
    targets: torch.Tensor  # (N,)
    their_targets: torch.Tensor  # (M,)
    spans: torch.Tensor  # (U, 4) of each unit's text, the student's and the teacher's: see Text
    ranks: tuple[torch.Tensor, torch.Tensor]  # (V,) and (V',); of anything, where units aren't compared by text
    supervised: torch.Tensor | None  # (N,) weight of each target's cross-entropy in the loss
    temperature: float  # that the student's logits were divided by
    shared: Shared | None
    parts: Weights
    loss: str
    strategy: str

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, which: slice) -> tuple[torch.Tensor, Values]:
        """(n, V) and (m, V') logits of the units `which` to the sum of their losses; (u,) values of those that are
        compared, and (n,) of the student's targets."""
        sizes = self.units[which]
        first, their_first = self.units[: which.start].sum(0).tolist()
        ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
        place, their_place = slice(first, first + len(ours)), slice(their_first, their_first + len(theirs))
        chosen = ours.gather(-1, self.targets[place, None])[:, 0]
        their_chosen = theirs.gather(-1, self.their_targets[their_place, None])[:, 0]
        with torch.no_grad():
            values = {"logps": chosen.detach(), "entropy": -(ours.exp() * ours).sum(-1)}
        total = chosen.sum() * 0.0  # a tile may have nothing to compare
        if self.supervised is not None:
            exact = chosen
            if self.temperature != 1:
                scores = (student * self.temperature).log_softmax(-1)
                exact = scores.gather(-1, self.targets[place, None])[:, 0]
            total = total - torch.dot(exact, self.supervised[place].to(exact.dtype))
            values["exact"] = exact.detach()
        compared = sizes[:, 1] > 0
        starts, kept = (sizes.cumsum(0) - sizes)[compared], sizes[compared]
        if not len(kept):
            return total, values | {name: chosen.detach()[:0] for name in self.names}
        merge = MERGES[self.strategy]
        of, begin, their_begin = to_device([compared.nonzero()[:, 0], starts[:, 0], starts[:, 1]], chosen.device)
        spans = self.spans[which][of]
        firsts = self.targets[place][begin], self.their_targets[their_place][their_begin]
        mine = merge(ours, chosen, starts[:, 0], kept[:, 0], firsts[0], Text(self.ranks[0], spans[:, :2]))
        other = merge(theirs, their_chosen, starts[:, 1], kept[:, 1], firsts[1], Text(self.ranks[1], spans[:, 2:]))
        losses, parts = LOSSES[self.loss](mine, other, self.shared, self.parts)
        with torch.no_grad():
            opening = theirs.index_select(0, their_begin)
            parts["teacher_entropy"] = -(opening.exp() * opening).sum(-1)
        weights = self.weights[which][of].to(losses.dtype)
        return total + torch.dot(losses, weights), values | {"losses": losses} | parts

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values that units have."""
        return ("losses", "teacher_entropy", *VALUES[self.loss])


@dataclass(frozen=True, kw_only=True)
class Plain:
    """N targets of a teacher with the same tokens."""

    targets: torch.Tensor
    beta: float

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, which: slice) -> tuple[torch.Tensor, Values]:
        """(n, V) and (n, V') logits of the targets `which` to the sum of their losses, and (n,) values of each."""
        size = min(student.shape[-1], teacher.shape[-1])  # rows beyond it are padding of one of the two
        ours, theirs = student[:, :size].log_softmax(-1), teacher[:, :size].log_softmax(-1)
        losses = generalised_jsd(ours, theirs, self.beta)
        with torch.no_grad():
            agree = (ours.argmax(-1) == theirs.argmax(-1)).to(losses.dtype)
            chosen = ours.gather(-1, self.targets[which].clamp(max=size - 1)[:, None])[:, 0]
            values = {"losses": losses, "agree": agree, "logps": chosen, "entropy": -(ours.exp() * ours).sum(-1)}
            values["teacher_entropy"] = -(theirs.exp() * theirs).sum(-1)
        return losses.sum(), values
