"""How far the student's distribution of a token is from the teacher's: pure functions of `Tokens` and the config to
(n,) values, in a table by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ft_sdft.config import SDFTConfig


# Same as ft_sdpo.losses.Tokens
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


# Same as ft_sdpo.losses.tokens_of
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


# Same as ft_sdpo.losses.kl, ft_distill.divergence.kl
def kl(of: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(of | other) of log-probs (n, K), over the last dimension: (n,)."""
    return (of.exp() * (of - other)).sum(-1)


# Same as ft_sdpo.losses.divergence
# Same values as ft_distill.divergence.generalised_jsd
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


# Same as ft_sdpo.losses.with_tail, ft_distill.divergence.with_tail
def with_tail(logps: torch.Tensor) -> torch.Tensor:
    """Log-probs (n, K) of some tokens, with that of all others together behind them: (n, K + 1)."""
    held = logps.logsumexp(-1, keepdim=True).clamp(max=-1e-7)  # where they hold all but nothing
    return torch.cat([logps, torch.log(-torch.expm1(held))], -1)


# Same as ft_sdpo.losses.renormalized
def renormalized(logps: torch.Tensor) -> torch.Tensor:
    """Log-probs (n, K) of some tokens as if there were no others."""
    return logps.log_softmax(-1)


# ---------------------------------------------------------------- the table


# Same as ft_sdpo.losses.topk_logits
def topk_logits(tokens: Tokens, config: SDFTConfig) -> torch.Tensor:
    """The divergence over the student's likeliest tokens."""
    vocabulary = tokens.student.shape[-1]
    top = tokens.student.topk(min(config.distillation_topk or vocabulary, vocabulary), -1)
    student = top.values - tokens.student_norm
    teacher = tokens.teacher.gather(-1, top.indices) - tokens.teacher_norm
    kept = with_tail if config.distillation_add_tail else renormalized
    return divergence(kept(student), kept(teacher), config.distillation_alpha)


# Same as ft_sdpo.losses.full_logits
def full_logits(tokens: Tokens, config: SDFTConfig) -> torch.Tensor:
    """The divergence over the whole vocabulary."""
    student, teacher = tokens.student - tokens.student_norm, tokens.teacher - tokens.teacher_norm
    return divergence(student, teacher, config.distillation_alpha)


# Same as ft_sdpo.losses.sampled_token
def sampled_token(tokens: Tokens, config: SDFTConfig) -> torch.Tensor:
    """sg(log p_student - log p_teacher) log p_student  of the sampled token: over samples of the student its gradient
    is that of the reverse KL. Its value is not: it is 0 where the two agree, and of either sign elsewhere."""
    return (tokens.student_logps - tokens.teacher_logps).detach() * tokens.student_logps


LOSSES: dict[str, Callable[[Tokens, SDFTConfig], torch.Tensor]] = {
    "topk_logits": topk_logits,
    "full_logits": full_logits,
    "sampled_token": sampled_token,
}

# ---------------------------------------------------------------- weights


# Same as ft_sdpo.losses.importance
def importance(logps: torch.Tensor, old_logps: torch.Tensor, most: float | None) -> torch.Tensor:
    """p / p_old of sampled tokens, (n,), at most `most`, without gradient."""
    return torch.exp((logps - old_logps).detach().clamp(-20, 20)).clamp(max=math.inf if most is None else most)
