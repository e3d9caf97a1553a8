"""Divergences, weights, advantages and the policy loss against numbers worked out by hand, and against TRL's functions:
values and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from ft_sdpo.losses import (
    DISTANCES,
    DIVISORS,
    SCALES,
    advantages,
    clipped,
    divergence,
    importance,
    kl,
    ratios,
    renormalized,
    tokens_of,
    with_tail,
)
from ft_sdpo.method import distilled
from trl.experimental.sdpo import loss_utils as theirs


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


S, T = doubles(0.5, 0.5).log()[None], doubles(0.9, 0.1).log()[None]


def test_kl():
    same(kl(T, S), doubles(0.9 * math.log(1.8) + 0.1 * math.log(0.2)))
    same(kl(S, T), doubles(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5)))
    same(kl(S, S), doubles(0.0))


def test_divergence():
    """Against the mixture of 0.25 of the teacher: (0.6, 0.4)."""
    same(divergence(S, T, 0.0), kl(T, S))
    same(divergence(S, T, 1.0), kl(S, T))
    of_student = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    of_teacher = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    same(divergence(S, T, 0.25), doubles(0.75 * of_student + 0.25 * of_teacher))


def test_some_tokens_and_the_others():
    some = doubles(0.5, 0.2).log()[None]
    same(with_tail(some), doubles(0.5, 0.2, 0.3).log()[None])
    same(renormalized(some), doubles(5 / 7, 2 / 7).log()[None])
    assert with_tail(doubles(0.5, 0.5).log()[None]).isfinite().all()  # of which nothing is left


def test_importance():
    """Up to the clip, and no gradient."""
    logps = doubles(-1.0, -1.0, -1.0).requires_grad_()
    found = importance(logps, doubles(-1.0, -1.0 - math.log(1.5), -5.0), 2.0)
    same(found, doubles(1.0, 1.5, 2.0))
    assert not found.requires_grad


NAN = math.nan


def test_advantages():
    """1, 2 and 6 have a mean of 3 and a variance of 7; two that are equal, one alone and one without a reward have
    none."""
    rewards, groups = doubles(1, 5, 2, 5, 6, 9, NAN), torch.tensor([0, 1, 0, 1, 0, 2, 1])
    spread = math.sqrt(7) + 1e-4
    same(advantages(rewards, groups, "group"), doubles(-2 / spread, 0, -1 / spread, 0, 3 / spread, 0, 0))
    same(advantages(rewards, groups, "none"), doubles(-2, 0, -1, 0, 3, 0, 0))
    whole = float(doubles(1, 5, 2, 5, 6, 9).std()) + 1e-4
    same(advantages(rewards, groups, "batch"), doubles(-2 / whole, 0, -1 / whole, 0, 3 / whole, 0, 0))
    assert advantages(doubles(), torch.tensor([], dtype=torch.long), "group").shape == (0,)


def test_ratios():
    rows, sizes = torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0])
    logs = doubles(2, 4, 8).log()
    same(ratios(logs, rows, sizes, "token"), doubles(2, 4, 8))
    same(ratios(logs, rows, sizes, "sequence"), doubles(math.sqrt(8), math.sqrt(8), 8))


def test_clipped():
    found = clipped(doubles(1.0, 1.5, 0.5, 1.5, 0.5), doubles(2, 2, 2, -2, -2), (0.8, 1.3))
    same(found, doubles(-2, -2.6, -1, 3, 1.6))


def test_scales():
    """Completions of three tokens and one, in a step of four completions and ten tokens."""
    sizes, totals, config = doubles(3, 3, 3, 1), {"trained": 4, "tokens": 10}, SimpleNamespace(max_completion_length=5)
    for name, expected in (
        ("dapo", [1 / 10] * 4),
        ("bnpo", [1 / 10] * 4),
        ("dr_grpo", [1 / 20] * 4),
        ("grpo", [1 / 12] * 3 + [1 / 4]),
    ):
        same(SCALES[name](sizes, config) / totals[DIVISORS[name]], doubles(*expected))


def logits(count: int = 6, size: int = 11) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    student, teacher = (2 * torch.randn(count, size, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(0, size, (count,))


def of_trl(
    student: torch.Tensor, teacher: torch.Tensor, targets: torch.Tensor, config: SimpleNamespace
) -> torch.Tensor:
    alpha = config.distillation_alpha
    if config.distillation_mode == "topk_logits":
        return theirs.compute_topk_self_distillation_loss(
            student[None],
            teacher[None],
            distillation_topk=config.distillation_topk,
            distillation_alpha=alpha,
            distillation_add_tail=config.distillation_add_tail,
        )[0]
    if config.distillation_mode == "full_logits":
        return theirs.compute_full_logit_self_distillation_loss(student[None], teacher[None], distillation_alpha=alpha)[
            0
        ]
    return theirs.compute_sampled_token_self_distillation_loss(
        student[None], teacher[None], targets[None], distillation_alpha=alpha
    )[0]


MODES = [
    *(("full_logits", alpha, 1, False) for alpha in (0.0, 0.3, 0.5, 1.0)),
    *(("topk_logits", alpha, k, tail) for alpha in (0.0, 0.5, 1.0) for k, tail in ((4, False), (4, True), (11, False))),
    ("sampled_token", 1.0, 1, False),
]


@pytest.mark.parametrize(("mode", "alpha", "k", "tail"), MODES)
@pytest.mark.parametrize("clip", [None, 2.0])
def test_losses_are_trls(mode, alpha, k, tail, clip):
    """Each token's, and the gradient of their mean over rows."""
    config = SimpleNamespace(
        distillation_mode=mode,
        distillation_alpha=alpha,
        distillation_topk=k,
        distillation_add_tail=tail,
        distillation_is_clip=clip,
    )
    student, teacher, targets = logits()
    old = None if clip is None else torch.linspace(-4, -1, 6, dtype=torch.float64)
    weights = 1 / (2 * doubles(4, 4, 4, 4, 2, 2))
    loss, values = distilled(
        student,
        teacher,
        slice(0, 6),
        targets=targets,
        taught=torch.ones(6, dtype=torch.bool),
        weights=weights,
        old_logps=old,
        config=config,
    )
    (grad,) = torch.autograd.grad(loss, student)
    expected = of_trl(student, teacher, targets, config)
    if clip is not None:
        logps = student.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        expected = theirs.apply_importance_sampling_clipping(expected, logps, old, clip)
    mean_of_means = (expected[:4].mean() + expected[4:].mean()) / 2
    (right,) = torch.autograd.grad(mean_of_means, student)
    same(values["losses"], expected, 1e-10)
    same(loss, mean_of_means, 1e-10)
    torch.testing.assert_close(grad, right, rtol=1e-8, atol=1e-10)
    assert grad.abs().max() > 1e-3


def test_only_those_that_are_taught():
    """In a tile where the teacher has nothing to say of some, and one where it has nothing to say at all."""
    student, teacher, targets = logits()
    taught = torch.tensor([True, False, True, True, False, False])
    config = SimpleNamespace(distillation_mode="full_logits", distillation_alpha=0.5)
    shared = {
        "targets": torch.cat([targets, targets]),
        "taught": torch.cat([~taught, taught]),
        "old_logps": None,
        "weights": torch.arange(12, dtype=torch.float64),
        "config": config,
    }
    loss, values = distilled(student, teacher[taught], slice(6, 12), **shared)
    expected = divergence(student.log_softmax(-1), teacher.log_softmax(-1), 0.5)[taught]
    same(values["losses"], expected, 1e-10)
    same(loss, (expected * doubles(6, 8, 9)).sum(), 1e-10)
    loss, values = distilled(student[4:], teacher[:0], slice(10, 12), **shared)
    assert float(loss.detach()) == 0 and len(values["losses"]) == 0
    assert torch.autograd.grad(loss, student)[0].abs().max() == 0


def test_more_tokens_than_there_are_is_all():
    student, teacher, targets = logits()
    config = SimpleNamespace(distillation_alpha=0.5, distillation_topk=100, distillation_add_tail=False)
    tokens = tokens_of(student, teacher, targets)
    same(DISTANCES["topk_logits"](tokens, config), DISTANCES["full_logits"](tokens, config), 1e-10)


def test_a_teacher_that_agrees_teaches_nothing():
    student, _, targets = logits()
    config = SimpleNamespace(distillation_alpha=1.0, distillation_topk=4, distillation_add_tail=True)
    tokens = tokens_of(student, student.detach(), targets)
    for name, loss in DISTANCES.items():
        values = loss(tokens, config)
        (grad,) = torch.autograd.grad(values.sum(), student, retain_graph=True)
        assert values.abs().max() < 1e-10 and grad.abs().max() < 1e-10, name


def test_the_sampled_token_has_the_gradient_of_the_reverse_kl():
    """Over what the student samples."""
    student, teacher, _ = logits(1)
    config = SimpleNamespace(distillation_alpha=1.0)
    expected = 0
    for token in range(11):
        tokens = tokens_of(student, teacher, torch.tensor([token]))
        (grad,) = torch.autograd.grad(DISTANCES["sampled_token"](tokens, config).sum(), student)
        expected = expected + student.detach().softmax(-1)[0, token] * grad
    tokens = tokens_of(student, teacher, torch.tensor([0]))
    (right,) = torch.autograd.grad(DISTANCES["full_logits"](tokens, config).sum(), student)
    torch.testing.assert_close(expected, right, rtol=1e-10, atol=1e-12)
