"""Every loss and divergence against numbers worked out by hand: each comment is the sum that was done."""

from __future__ import annotations

import dataclasses

import ft_dpo.config
import pytest
import torch
from ft_dpo.config import DPOConfig
from ft_dpo.losses import DIVERGENCES, LOSSES, Pairs, matches


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# a = 0.5, -1     b = -1, 0.5     beta = 0.5
LOGPS = [(-12.0, -15.0, -12.5, -14.0), (-30.0, -22.0, -29.0, -22.5)]
CONFIG = DPOConfig(beta=0.5, discopop_tau=0.5, label_smoothing=0.1)


def pairs() -> Pairs:
    chosen, rejected, ref_chosen, ref_rejected = (column(*each) for each in zip(*LOGPS, strict=True))
    return Pairs(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=ref_chosen,
        ref_rejected_logps=ref_rejected,
        chosen_scores=chosen - ref_chosen,
        rejected_scores=rejected - ref_rejected,
        chosen_lengths=column(4, 10),
        rejected_lengths=column(5, 8),
        chosen_nll=column(12.0, 30.0),
        **{name: column(*(each[name] for each in matches(LOGPS))) for name in matches(LOGPS)[0]},
    )


# L(x) = -log sigma(x), s = sigma
BY_HAND = {
    "sigmoid": (0.386871, 1.136871),  # L(0.75), L(-0.75)
    "hinge": (0.25, 1.75),  # 1 - 0.75, 1 + 0.75
    "ipo": (0.455625, 1.3514063),  # (0.5/4 + 1/5 - 1)^2, (-1/10 - 0.5/8 - 1)^2
    "exo_pair": (0.18279, 0.9701817),  # s(.75) log(s(.75)/.9) + s(-.75) log(s(-.75)/.1), and with -.75
    "nca_pair": (1.2259476, 1.6240852),  # L(.25) + L(-.25)/2 + L(.5)/2, L(-.5) + L(.5)/2 + L(-.25)/2
    "robust": (0.293121, 1.230621),  # (.9 L(.75) - .1 L(-.75)) / .8, and with -.75
    "bco_pair": (1.0500164, 1.8000164),  # L(.25) + L(.5), L(-.5) + L(-.25)
    "sppo_hard": (0.25, 6.25),  # (0.5 - 1)^2 + (-1 + 1)^2, (-1 - 1)^2 + (0.5 + 1)^2
    # log-ratios of the policy 3 and -8, of the reference 1.5 and -6.5, each with its place in the order
    "aot": (0.461871, 1.061871),  # .9 L(.75) + .1 L(-.75), and with -.75
    # sorted a: -1, 0.5; sorted b: -1, 0.5; all differences are 0
    "aot_unpaired": (0.6931472, 0.6931472),
    "apo_zero": (0.8153642, 1.1846358),  # 1 - s(.25) + s(-.5), 1 - s(-.5) + s(.25)
    "apo_down": (0.8829978, 1.0567194),  # s(.25) + 1 - s(.75), s(-.5) + 1 - s(-.75)
    "discopop": (0.45677, 1.3156716),  # (1 - s(1.5)) L(.75) + s(1.5) e^-.75, and with the signs turned
    "sigmoid_norm": (0.6151943, 0.7345971),  # L(0.5 * 0.325), L(0.5 * -0.1625)
    "sft": (12.0, 30.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    found = LOSSES[name](pairs(), CONFIG)
    torch.testing.assert_close(found, column(*BY_HAND[name]), atol=1e-6, rtol=0)


def test_the_config_lists_the_tables():
    """config.py names them without importing torch."""
    assert ft_dpo.config.LOSS_TYPES == tuple(LOSSES)
    assert ft_dpo.config.DIVERGENCES == tuple(DIVERGENCES)


@pytest.mark.parametrize(
    ("name", "alpha", "expected"),
    [
        ("reverse_kl", 0.5, (0.5, -1.0, 0.0)),
        ("forward_kl", 0.5, (0.3934693, -1.7182818, 0.0)),  # 1 - e^-x
        ("js_divergence", 0.5, (0.2190702, -0.6201145, 0.0)),  # log(2 e^x / (e^x + 1))
        ("alpha_divergence", 0.5, (0.4423984, -1.2974425, 0.0)),  # (e^(-x/2) - 1) / (-1/2)
        ("alpha_divergence", 2.0, (0.6487213, -0.6321206, 0.0)),  # e^x - 1
        ("alpha_divergence", 0.0, (0.3934693, -1.7182818, 0.0)),  # forward_kl
        ("alpha_divergence", 1.0, (0.5, -1.0, 0.0)),  # reverse_kl, the limit
    ],
)
def test_divergence(name, alpha, expected):
    found = DIVERGENCES[name](column(0.5, -1.0, 0.0), alpha)
    torch.testing.assert_close(found, column(*expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "alpha"), [("forward_kl", 0.5), ("alpha_divergence", 0.0), ("alpha_divergence", 2.0)])
def test_exponential_divergences_stay_finite(name, alpha):
    """A log-ratio of -100 would be e^100: no float32."""
    logratios = torch.tensor([-100.0, 100.0], requires_grad=True)
    scores = DIVERGENCES[name](logratios, alpha)
    scores.sum().backward()
    assert scores.isfinite().all() and logratios.grad.isfinite().all()


def test_losses_of_a_difference_see_the_scores():
    """Those that take an f-divergence read s and t; doubling both is doubling beta. The others don't look."""
    doubled = dataclasses.replace(
        pairs(), chosen_scores=2 * pairs().chosen_scores, rejected_scores=2 * pairs().rejected_scores
    )
    changed = {name for name in LOSSES if not torch.equal(LOSSES[name](doubled, CONFIG), LOSSES[name](pairs(), CONFIG))}
    assert changed == set(ft_dpo.config.DIFFERENCES)
    config = dataclasses.replace(CONFIG, beta=1.0)
    torch.testing.assert_close(LOSSES["sigmoid"](doubled, CONFIG), LOSSES["sigmoid"](pairs(), config))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(ft_dpo.config.SMOOTHED)))
def test_smoothing_enters_only_where_it_is_allowed(name):
    config = dataclasses.replace(CONFIG, label_smoothing=0.4)
    assert torch.equal(LOSSES[name](pairs(), CONFIG), LOSSES[name](pairs(), config))


@pytest.mark.parametrize("name", ft_dpo.config.SMOOTHED)
def test_smoothing_enters(name):
    config = dataclasses.replace(CONFIG, label_smoothing=0.4)
    moved = dataclasses.replace(pairs(), matched_rejected=column(0.1, 0.2), matched_chosen=column(0.3, 0.4))
    assert not torch.equal(LOSSES[name](moved, CONFIG), LOSSES[name](moved, config))


# ---------------------------------------------------------------- sorted losses


def test_matches_by_hand():
    """Three pairs: a = 2, -1, 0.5 and b = 0.3, 0.7, -2; log-ratios of the policy 1, 5, -3, of the reference
    -0.7, 6.7, -5.5."""
    a, b = (2.0, -1.0, 0.5), (0.3, 0.7, -2.0)
    policy = (1.0, 5.0, -3.0)
    logps = [(policy[i] - 9, -9.0, policy[i] - 9 - a[i], -9 - b[i]) for i in range(3)]
    found = matches(logps)
    # orders: policy third, first, second; reference -5.5, -0.7, 6.7
    assert [each["matched_reference"] for each in found] == pytest.approx([-0.7, 6.7, -5.5])
    # orders: a second (-1), third (0.5), first (2); b third (-2), first (0.3), second (0.7)
    assert [each["matched_rejected"] for each in found] == pytest.approx([0.7, -2.0, 0.3])
    assert [each["matched_chosen"] for each in found] == pytest.approx([0.5, 2.0, -1.0])


def test_unpaired_sum_and_gradient_by_hand():
    """Sorted a - sorted b is 1, 0.2, 1.3; each side has the gradient of the difference that it is in."""
    a = column(2.0, -1.0, 0.5).requires_grad_()
    b = column(0.3, 0.7, -2.0).requires_grad_()
    zero = torch.zeros(3, dtype=torch.float64)
    matched = {"matched_rejected": column(0.7, -2.0, 0.3), "matched_chosen": column(0.5, 2.0, -1.0)}
    given = Pairs(
        chosen_logps=a,
        rejected_logps=b,
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        chosen_scores=a,
        rejected_scores=b,
        chosen_lengths=zero,
        rejected_lengths=zero,
        chosen_nll=zero,
        **matched,
    )
    loss = LOSSES["aot_unpaired"](given, CONFIG).sum()
    loss.backward()
    # d(1) + d(0.2) + d(1.3) with d(x) = .9 L(x/2) + .1 L(-x/2)
    assert loss.item() == pytest.approx(0.524077 + 0.6543967 + 0.4850553, abs=1e-6)
    # d' is -0.1387703 at 1, -0.1875104 at 0.2, -0.1214948 at 1.3
    torch.testing.assert_close(a.grad, column(-0.1214948, -0.1387703, -0.1875104), atol=1e-6, rtol=0)
    torch.testing.assert_close(b.grad, column(0.1875104, 0.1214948, 0.1387703), atol=1e-6, rtol=0)
