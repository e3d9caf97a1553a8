"""The maths, against values worked out by hand and against TRL's functions."""

from __future__ import annotations

import math

import pytest
import torch
from ft_distill.divergence import Taught, TaughtByTop, generalised_jsd, topk_jsd, with_tail

from ft_host.testing import tiled_loss

HALF, QUARTER = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
BETAS = (0.0, 0.2, 0.5, 0.9, 1.0)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- the divergence


def test_forward_kl_by_hand():
    """The teacher says 1/4 and 3/4, the student 1/2 and 1/2."""
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert float(generalised_jsd(HALF, QUARTER, 0.0)) == pytest.approx(expected, rel=1e-6)


def test_reverse_kl_by_hand():
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(generalised_jsd(HALF, QUARTER, 1.0)) == pytest.approx(expected, rel=1e-6)


def test_jensen_shannon_by_hand():
    """beta is the teacher's share of the mixture, and the weight of its KL."""
    beta = 0.2
    mixture = [0.8 * 0.5 + 0.2 * 0.25, 0.8 * 0.5 + 0.2 * 0.75]
    teacher = 0.25 * math.log(0.25 / mixture[0]) + 0.75 * math.log(0.75 / mixture[1])
    student = 0.5 * math.log(0.5 / mixture[0]) + 0.5 * math.log(0.5 / mixture[1])
    expected = beta * teacher + (1 - beta) * student
    assert float(generalised_jsd(HALF, QUARTER, beta)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_a_teacher_who_says_the_same(beta):
    student = logits(0, 3, 9).log_softmax(-1).requires_grad_()
    loss = generalised_jsd(student, student.detach(), beta)
    assert torch.all(loss.abs() < 1e-12)
    assert torch.all(generalised_jsd(student, logits(1, 3, 9).log_softmax(-1), beta) > 0)


@pytest.mark.parametrize("beta", BETAS)
def test_gradients_are_those_of_differences(beta):
    student, teacher = logits(0, 4, 7).requires_grad_(), logits(1, 4, 7).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: generalised_jsd(x.log_softmax(-1), teacher, beta), student)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_as_trl_has_it_in_gkd(beta, temperature):
    """Loss and gradient, of masked tokens, with the temperature that its function takes."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(0, 2, 5, 11).float(), logits(1, 2, 5, 11).float()
    labels = torch.tensor([[-100, 3, 4, -100, 1], [2, 2, -100, -100, 9]])
    theirs, ours = student.clone().requires_grad_(), student.clone().requires_grad_()
    expected = GKDTrainer.generalized_jsd_loss(theirs, teacher, labels, beta=beta, temperature=temperature)
    kept = labels != -100
    function = Taught(targets=labels[kept], beta=beta)
    loss, _ = function(ours[kept] / temperature, teacher[kept] / temperature, slice(0, int(kept.sum())))
    loss = loss / int(kept.sum())
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("beta", BETAS)
def test_as_trl_has_it_in_distillation(beta):
    """Loss, gradient by the states and the head, and entropy, of hidden states of two widths."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    states, matrix = logits(0, 6, 8).float(), logits(1, 13, 8).float()
    other, other_matrix = logits(2, 6, 10).float(), logits(3, 13, 10).float()
    mask = torch.tensor([1, 1, 0, 1, 0, 1])
    found = []
    for ours in (True, False):
        hidden, head = states.clone().requires_grad_(), matrix.clone().requires_grad_()
        if ours:
            kept = mask.bool()
            function = Taught(targets=torch.zeros(4, dtype=torch.long), beta=beta)
            loss, values = tiled_loss(hidden[kept], head, other[kept], other_matrix, function, temperature=0.8)
            loss, entropy = loss / 4, values["entropy"].sum()
        else:
            loss, entropy, _ = _chunked_divergence_loss(
                hidden[None], other[None], head, other_matrix, mask[None], beta, temperature=0.8
            )
        loss.backward()
        found.append((float(loss), float(entropy), hidden.grad, head.grad))
    mine, theirs = found
    assert mine[:2] == pytest.approx(theirs[:2], rel=1e-5)
    for one, another in zip(mine[2:], theirs[2:], strict=True):
        assert torch.allclose(one, another, rtol=1e-4, atol=1e-6)


def test_values_of_tokens():
    student, teacher = (
        torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]),
        torch.tensor([[0.0, 2.0, 1.0], [3.0, 1.0, 0.0]]),
    )
    function = Taught(targets=torch.tensor([9, 9, 1, 0]), beta=1.0)
    loss, values = function(student, teacher, slice(2, 4))
    logps = student.log_softmax(-1)
    assert values["agree"].tolist() == [0.0, 1.0]
    assert values["logps"].tolist() == pytest.approx([float(logps[0, 1]), float(logps[1, 0])])
    assert values["entropy"].tolist() == pytest.approx((-(logps.exp() * logps).sum(-1)).tolist())
    said = teacher.log_softmax(-1)
    assert values["teacher_entropy"].tolist() == pytest.approx((-(said.exp() * said).sum(-1)).tolist())
    assert float(loss) == pytest.approx(float(values["losses"].sum()))


@pytest.mark.parametrize("wider", ["student", "teacher"])
def test_rows_of_padding_are_left_out(wider):
    """One of the two has three rows that are no tokens: the divergence is over what both have, as if there were no
    more."""
    both = {"student": logits(0, 4, 7), "teacher": logits(1, 4, 7)}
    function = Taught(targets=torch.zeros(4, dtype=torch.long), beta=0.5)
    expected, _ = function(both["student"], both["teacher"], slice(0, 4))
    both[wider] = torch.cat([both[wider], logits(2, 4, 3) + 5], -1)
    found, _ = function(both["student"], both["teacher"], slice(0, 4))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


# ---------------------------------------------------------------- with the teacher's likeliest tokens alone


def test_a_tail_by_hand():
    """The teacher says 0.6 and 0.3 of tokens 2 and 0; all else is 0.1. The student: 0.2, 0.5 and, of all else, 0.3."""
    student = torch.tensor([[0.5, 0.1, 0.2, 0.2]]).log()
    ids, teacher = torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.3]]).log()
    forward = 0.6 * math.log(0.6 / 0.2) + 0.3 * math.log(0.3 / 0.5) + 0.1 * math.log(0.1 / 0.3)
    reverse = 0.2 * math.log(0.2 / 0.6) + 0.5 * math.log(0.5 / 0.3) + 0.3 * math.log(0.3 / 0.1)
    assert float(topk_jsd(student, ids, teacher, 0.0, True)) == pytest.approx(forward, rel=1e-5)
    assert float(topk_jsd(student, ids, teacher, 1.0, True)) == pytest.approx(reverse, rel=1e-5)
    mixture = [(0.2 + 0.6) / 2, (0.5 + 0.3) / 2, (0.3 + 0.1) / 2]
    shares = [(p, m) for p, m in zip((0.6, 0.3, 0.1), mixture, strict=True)]
    ours = [(p, m) for p, m in zip((0.2, 0.5, 0.3), mixture, strict=True)]
    jensen = sum(p * math.log(p / m) for p, m in shares + ours) / 2
    assert float(topk_jsd(student, ids, teacher, 0.5, True)) == pytest.approx(jensen, rel=1e-5)


def test_without_a_tail_by_hand():
    """The rest is left out on both sides: 2/3 and 1/3 of the teacher, 2/7 and 5/7 of the student."""
    student = torch.tensor([[0.5, 0.1, 0.2, 0.2]]).log()
    ids, teacher = torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.3]]).log()
    forward = 2 / 3 * math.log(2 / 3 / (2 / 7)) + 1 / 3 * math.log(1 / 3 / (5 / 7))
    assert float(topk_jsd(student, ids, teacher, 0.0, False)) == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_with_all_tokens_it_is_the_whole_divergence(beta):
    student, teacher = logits(0, 4, 7).log_softmax(-1), logits(1, 4, 7).log_softmax(-1)
    ids = teacher.argsort(-1, descending=True)
    expected = generalised_jsd(student, teacher, beta)
    assert torch.allclose(topk_jsd(student, ids, teacher.gather(-1, ids), beta, False), expected)
    assert torch.allclose(topk_jsd(student, ids, teacher.gather(-1, ids), beta, True), expected, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_a_tail_never_makes_it_larger_than_it_is(beta):
    """Events that are put together tell less apart (data processing)."""
    student, teacher = logits(0, 50, 7).log_softmax(-1), 3 * logits(1, 50, 7)
    teacher = teacher.log_softmax(-1)
    top = teacher.topk(3, -1)
    whole = generalised_jsd(student, teacher, beta)
    assert torch.all(topk_jsd(student, top.indices, top.values, beta, True) <= whole + 1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("tail", [True, False])
def test_gradients_with_a_tail(beta, tail):
    student, teacher = logits(0, 4, 7).requires_grad_(), logits(1, 4, 7).log_softmax(-1)
    top = teacher.topk(3, -1)
    loss = lambda x: topk_jsd(x.log_softmax(-1), top.indices, top.values, beta, tail)  # noqa: E731
    assert torch.autograd.gradcheck(loss, student)


def test_the_tail_is_what_is_left():
    logps = torch.tensor([[0.6, 0.3], [1.0, 0.0]]).clamp(min=1e-30).log()
    tail = with_tail(logps)[:, 2].exp()
    assert float(tail[0]) == pytest.approx(0.1, rel=1e-5) and 0 < float(tail[1]) < 1e-6


@pytest.mark.parametrize("beta", BETAS)
def test_tails_as_trl_has_them(beta):
    from trl.experimental.server_distillation.server_distillation_trainer import _add_tail_bucket, _jsd_divergence

    teacher = logits(1, 4, 7).float().log_softmax(-1).topk(3, -1)
    theirs, ours = logits(0, 4, 7).float().requires_grad_(), logits(0, 4, 7).float().requires_grad_()
    valid = torch.ones(4, 3, dtype=torch.bool)
    chosen, mask = _add_tail_bucket(theirs.log_softmax(-1).gather(-1, teacher.indices), valid)
    other, _ = _add_tail_bucket(teacher.values, valid)
    expected = _jsd_divergence(chosen, other, beta, support_mask=mask).sum()
    function = TaughtByTop(
        targets=torch.zeros(4, dtype=torch.long), ids=teacher.indices, teacher=teacher.values, tail=True, beta=beta
    )
    loss, _ = function(ours, None, slice(0, 4))
    loss.backward()
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
