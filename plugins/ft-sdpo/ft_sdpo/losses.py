"""Losses as pure functions, in tables by name: how far the student's distribution of a token is from the teacher's, and
the clipped policy loss of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ft_sdpo.config import SDPOConfig


# Same as ft_sdft.losses.Tokens
@dataclass(frozen=True, kw_only=True)
class Tokens:
    """n tokens of completions: logits over the vocabulary, (n, V) in float32 or wider, at the temperature that
    samples."""

    student: torch.Tensor  # with gradient
    teacher: torch.Tensor
    student_norm: torch.Tensor  # (n, 1) logsumexp of the logits
    teacher_norm: torch.Tensor
    student_logps: torch.Tensor  # (n,) of the token that was sampled, with gradient
    teacher_logps: torch.Tensor


# Same as ft_sdft.losses.tokens_of
def tokens_of(student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor) -> Tokens:
    """From logits, (n, V) each, and the tokens that were sampled, (n,)."""
    norms = student.logsumexp(-1, keepdim=True), teacher.logsumexp(-1, keepdim=True)
    chosen = targets[:, None]
    return Tokens(
        student=student,
        teacher=teacher,
        student_norm=norms[0],
        teacher_norm=norms[1],
        student_logps=(student.gather(1, chosen) - norms[0])[:, 0],
        teacher_logps=(teacher.gather(1, chosen) - norms[1])[:, 0],
    )


# Same as ft_sdft.losses.kl
def kl(of: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(of | other) of log-probs (n, K), over the last dimension: (n,)."""
    return (of.exp() * (of - other)).sum(-1)


# Same as ft_sdft.losses.divergence
def divergence(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> torch.Tensor:
    """Of log-probs (n, K): (n,). With m = (1 - alpha) p_student + alpha p_teacher,

        (1 - alpha) KL(student | m) + alpha KL(teacher | m)

    and, as its limits are 0 there, KL(teacher | student) at an alpha of 0 and KL(student | teacher) at 1.
    """
    if alpha == 0:
        return kl(teacher, student)
    if alpha == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(student + math.log(1 - alpha), teacher + math.log(alpha))
    return (1 - alpha) * kl(student, mixture) + alpha * kl(teacher, mixture)


# Same as ft_sdft.losses.with_tail
def with_tail(logps: torch.Tensor) -> torch.Tensor:
    """Log-probs (n, K) of some tokens, with that of all others together behind them: (n, K + 1)."""
    held = logps.logsumexp(-1, keepdim=True).clamp(max=-1e-7)  # where they hold all but nothing
    return torch.cat([logps, torch.log(-torch.expm1(held))], -1)


# Same as ft_sdft.losses.renormalized
def renormalized(logps: torch.Tensor) -> torch.Tensor:
    """Log-probs (n, K) of some tokens as if there were no others."""
    return logps.log_softmax(-1)


# ---------------------------------------------------------------- distances


# Same as ft_sdft.losses.topk_logits
def topk_logits(tokens: Tokens, config: SDPOConfig) -> torch.Tensor:
    """The divergence over the student's likeliest tokens."""
    vocabulary = tokens.student.shape[-1]
    top = tokens.student.topk(min(config.distillation_topk or vocabulary, vocabulary), -1)
    student = top.values - tokens.student_norm
    teacher = tokens.teacher.gather(-1, top.indices) - tokens.teacher_norm
    kept = with_tail if config.distillation_add_tail else renormalized
    return divergence(kept(student), kept(teacher), config.distillation_alpha)


# Same as ft_sdft.losses.full_logits
def full_logits(tokens: Tokens, config: SDPOConfig) -> torch.Tensor:
    """The divergence over the whole vocabulary."""
    student, teacher = tokens.student - tokens.student_norm, tokens.teacher - tokens.teacher_norm
    return divergence(student, teacher, config.distillation_alpha)


# Same as ft_sdft.losses.sampled_token
def sampled_token(tokens: Tokens, config: SDPOConfig) -> torch.Tensor:
    """sg(log p_student - log p_teacher) log p_student  of the sampled token: over samples of the student its gradient
    is that of the reverse KL. Its value is not: it is 0 where the two agree, and of either sign elsewhere."""
    return (tokens.student_logps - tokens.teacher_logps).detach() * tokens.student_logps


DISTANCES: dict[str, Callable[[Tokens, SDPOConfig], torch.Tensor]] = {
    "topk_logits": topk_logits,
    "full_logits": full_logits,
    "sampled_token": sampled_token,
}

# ---------------------------------------------------------------- ratios, advantages, the policy loss


# Same as ft_sdft.losses.importance
def importance(logps: torch.Tensor, old_logps: torch.Tensor, most: float | None) -> torch.Tensor:
    """p / p_old of sampled tokens, (n,), at most `most`, without gradient."""
    return torch.exp((logps - old_logps).detach().clamp(-20, 20)).clamp(max=math.inf if most is None else most)


# Same as ft_grpo.losses.row_sums
def row_sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) values of tokens, added up by row: (R,)."""
    return values.new_zeros(count).index_add(0, rows, values)


# Same values as ft_grpo.advantages.advantages
def advantages(rewards: torch.Tensor, groups: torch.Tensor, scale: str) -> torch.Tensor:
    """(n,) from (n,) rewards, nan where there is none, and the group of each, (n,) long from 0: the distance from the
    mean of its group, by the unbiased standard deviation of "group" or "batch" and 1e-4, or by nothing ("none"). 0
    where there is no reward, or none to compare it with."""
    known, count = ~rewards.isnan(), int(groups.max()) + 1 if len(groups) else 0
    sizes = row_sums(known.to(rewards.dtype), groups, count)
    means = row_sums(rewards.nan_to_num(0.0), groups, count) / sizes
    found = rewards - means[groups]
    if scale == "group":
        squares = row_sums(found.square().nan_to_num(0.0), groups, count)
        found = found / ((squares / (sizes - 1)).sqrt()[groups] + 1e-4)
    elif scale == "batch":
        found = found / (rewards[known].std() + 1e-4)
    return torch.where(known & (sizes[groups] > 1), found, 0.0)


# Same values as ft_grpo.losses.ratios
def ratios(log_ratios: torch.Tensor, rows: torch.Tensor, sizes: torch.Tensor, level: str) -> torch.Tensor:
    """q of each token, (N,), from its log-ratio; with `level` "sequence" that of its row, the geometric mean of
    them."""
    if level == "sequence":
        log_ratios = (row_sums(log_ratios, rows, len(sizes)) / sizes.clamp(min=1))[rows]
    return torch.exp(log_ratios)


# Same values as ft_grpo.losses.clipped, ft_rloo.method.clipped_losses, ft_ppo.method.policy_losses
def clipped(q: torch.Tensor, advantages: torch.Tensor, clip_range: tuple[float, float]) -> torch.Tensor:
    """PPO's objective:  - min(q A, clip(q) A),  (N,) each."""
    return -torch.minimum(q * advantages, q.clamp(*clip_range) * advantages)


# What the policy loss of each token is multiplied with before all are added, from (N,) the size of its row; and the
# count of the step that divides the sum. bnpo is TRL's mean over the tokens of a micro-batch, which depends on how a
# step is cut; over the step it is dapo.
Scale = Callable[[torch.Tensor, SDPOConfig], torch.Tensor]
SCALES: dict[str, Scale] = {
    "grpo": lambda sizes, config: 1 / sizes,
    "bnpo": lambda sizes, config: torch.ones_like(sizes),
    "dr_grpo": lambda sizes, config: torch.ones_like(sizes) / config.max_completion_length,
    "dapo": lambda sizes, config: torch.ones_like(sizes),
}
DIVISORS = {"grpo": "trained", "bnpo": "tokens", "dr_grpo": "trained", "dapo": "tokens"}
