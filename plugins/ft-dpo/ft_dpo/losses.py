"""The losses of preference pairs, each a pure function of `Pairs` and the config to (P,) values, in a table by name.

    a = log pi(chosen | prompt) / ref(chosen | prompt)         b = the same of rejected
    s = f'(e^a) and t = f'(e^b): the rewards over beta, a and b themselves for reverse_kl

The method adds the values up, and divides by the pairs of the whole step (`sft`: by the chosen tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, relu

from ft_dpo.config import DPOConfig


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a loss sees of P pairs: (P,) tensors. Log-probs are sums over the tokens of a completion, in nats."""

    chosen_logps: torch.Tensor  # of the policy, with gradient; with ld_alpha, weighted sums
    rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor  # of the reference; 0 where there is none
    ref_rejected_logps: torch.Tensor
    chosen_scores: torch.Tensor  # s and t above, with gradient
    rejected_scores: torch.Tensor
    chosen_lengths: torch.Tensor  # tokens of the completion
    rejected_lengths: torch.Tensor
    chosen_nll: torch.Tensor  # - sum of log-probs over the chosen tokens, whatever ld_alpha says; with gradient
    # Of the losses that sort over the step, what each pair is matched with (see `matches`); None with the others.
    matched_reference: torch.Tensor | None = None  # a log-ratio chosen / rejected of the reference
    matched_rejected: torch.Tensor | None = None  # the b of some pair, for this pair's a
    matched_chosen: torch.Tensor | None = None  # the a of some pair, for this pair's b

    @property
    def chosen_logratios(self) -> torch.Tensor:
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> torch.Tensor:
        return self.rejected_logps - self.ref_rejected_logps

    @property
    def margins(self) -> torch.Tensor:
        """s - t."""
        return self.chosen_scores - self.rejected_scores

    @property
    def margins_by_token(self) -> torch.Tensor:
        """s and t each divided by the length of its completion, and then their difference."""
        chosen = self.chosen_scores / self.chosen_lengths.clamp(min=1)
        return chosen - self.rejected_scores / self.rejected_lengths.clamp(min=1)


Loss = Callable[[Pairs, DPOConfig], torch.Tensor]

# ---------------------------------------------------------------- f-divergences

# exp of more than 88 overflows float32, and inf - inf in a margin would make all weights nan. Beyond e^80 a score stays
# where it is, and such a completion gives no gradient any more.
LARGEST = 80.0


def reverse_kl(logratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """KL(policy | reference): f'(u) = log u + 1. The constant is left out here and below: it cancels in a margin."""
    return logratios


def forward_kl(logratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """KL(reference | policy): f'(u) = -1/u, here with 1 added, so that 0 is where policy and reference agree."""
    return 1 - torch.exp((-logratios).clamp(max=LARGEST))


def js_divergence(logratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """Jensen-Shannon: f'(u) = log(2u / (1 + u))."""
    return math.log(2) + logsigmoid(logratios)


def alpha_divergence(logratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """f'(u) = (u^(alpha - 1) - 1) / (alpha - 1): f-DPO's (1 - u^-a) / a with a = 1 - alpha. log u as alpha nears 1."""
    if abs(alpha - 1) < 1e-6:
        return logratios
    return (torch.exp(((alpha - 1) * logratios).clamp(max=LARGEST)) - 1) / (alpha - 1)


# f'(e^x) of (P,) log-ratios x: "Beyond Reverse KL", arXiv 2309.16240, table 1.
DIVERGENCES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js_divergence": js_divergence,
    "alpha_divergence": alpha_divergence,
}

# ---------------------------------------------------------------- losses


def sigmoid(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """DPO, arXiv 2305.18290, eq. 7:  - log sigma(beta (s - t)). With other divergences f-DPO, arXiv 2309.16240."""
    return -logsigmoid(config.beta * pairs.margins)


def hinge(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """SLiC's hinge (arXiv 2305.10425) on DPO's margin, as in RSO, arXiv 2309.06657:  max(0, 1 - beta (s - t))."""
    return relu(1 - config.beta * pairs.margins)


def ipo(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """IPO, arXiv 2310.12036, eq. 17:  (margin - 1 / (2 beta))^2.

    The margin is of means over tokens: of sums, the square would grow with length, and the target not. The paper
    doesn't say it; TRL reports that its authors did so.
    """
    return (pairs.margins_by_token - 1 / (2 * config.beta)) ** 2


def exo_pair(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """EXO on pairs, arXiv 2402.00856, eq. 16: KL from the policy's preference to the smoothed label.

    q log(q / (1 - eps)) + (1 - q) log((1 - q) / eps)   with q = sigma(beta (s - t)), eps = label_smoothing
    """
    logits = config.beta * pairs.margins
    kept = torch.sigmoid(logits) * (logsigmoid(logits) - math.log1p(-config.label_smoothing))
    return kept + torch.sigmoid(-logits) * (logsigmoid(-logits) - math.log(config.label_smoothing))


def nca_pair(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """NCA on pairs, arXiv 2402.05369:  - log sigma(beta a) - 1/2 log sigma(-beta a) - 1/2 log sigma(-beta b).

    Keeps the chosen likelihood from falling, which DPO's margin allows.
    """
    chosen, rejected = config.beta * pairs.chosen_logratios, config.beta * pairs.rejected_logratios
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def robust(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """Robust DPO, arXiv 2403.00409: unbiased where a share eps = label_smoothing of the labels is flipped.

    - ((1 - eps) log sigma(m) - eps log sigma(-m)) / (1 - 2 eps)   with m = beta (s - t)
    """
    logits, flipped = config.beta * pairs.margins, config.label_smoothing
    return -((1 - flipped) * logsigmoid(logits) - flipped * logsigmoid(-logits)) / (1 - 2 * flipped)


def bco_pair(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """BCO, arXiv 2404.04656, on pairs and without its shift:  - log sigma(beta a) - log sigma(-beta b)."""
    return -logsigmoid(config.beta * pairs.chosen_logratios) - logsigmoid(-config.beta * pairs.rejected_logratios)


def sppo_hard(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """SPPO, arXiv 2405.00675, eq. 4.7, with hard labels (a win is certain):  (a - 1/2beta)^2 + (b + 1/2beta)^2."""
    target = 0.5 / config.beta
    return (pairs.chosen_logratios - target) ** 2 + (pairs.rejected_logratios + target) ** 2


def _dominance(differences: torch.Tensor, config: DPOConfig) -> torch.Tensor:
    """AOT's penalty of a difference that should be positive, with smoothed labels."""
    logits, smoothing = config.beta * differences, config.label_smoothing
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def aot(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """AOT on pairs, arXiv 2406.05882: the policy's log-ratios chosen / rejected should dominate the reference's.

    First-order dominance compares two sorted samples. The partner of a pair is the reference's log-ratio that has the
    same place in its order as this pair's has in the policy's, over the whole step.
    """
    assert pairs.matched_reference is not None  # ft_step has matched them
    return _dominance(pairs.chosen_logps - pairs.rejected_logps - pairs.matched_reference, config)


def aot_unpaired(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """AOT without pairs, arXiv 2406.05882: the sorted a should dominate the sorted b, over the whole step.

    The loss is  sum_k d(a_(k) - b_(k)),  where a_(k) and b_(k) may be of different pairs, of other micro-batches and
    ranks. Here each pair gives its own a against a constant b, and its own b against a constant a: the gradients of
    both are those of the sum. The value would be counted twice, so the first is taken without its value.
    """
    assert pairs.matched_rejected is not None and pairs.matched_chosen is not None  # ft_step has matched them
    of_chosen = _dominance(pairs.chosen_logratios - pairs.matched_rejected, config)
    of_rejected = _dominance(pairs.matched_chosen - pairs.rejected_logratios, config)
    return of_rejected + of_chosen - of_chosen.detach()


def apo_zero(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """APO-zero, arXiv 2408.06266, eq. 7:  1 - sigma(beta a) + sigma(beta b). Chosen up, rejected down.

    For chosen completions that are better than what the model writes.
    """
    chosen, rejected = config.beta * pairs.chosen_logratios, config.beta * pairs.rejected_logratios
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """APO-down, arXiv 2408.06266, eq. 8:  sigma(beta a) + 1 - sigma(beta (a - b)). Both down, rejected more.

    For chosen completions that are worse than what the model writes.
    """
    margins = pairs.chosen_logratios - pairs.rejected_logratios
    return torch.sigmoid(config.beta * pairs.chosen_logratios) + 1 - torch.sigmoid(config.beta * margins)


def discopop(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """DiscoPOP, arXiv 2406.08414, eq. 5: logistic and exponential loss, mixed by sigma(m / tau), m = beta (s - t)."""
    logits = config.beta * pairs.margins
    share = torch.sigmoid(logits / config.discopop_tau)
    return (1 - share) * -logsigmoid(logits) + share * torch.exp(-logits)


def sigmoid_norm(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """DPO normalised by length, as of Tulu 3, arXiv 2411.15124: sigmoid, with rewards that are means over tokens."""
    return -logsigmoid(config.beta * pairs.margins_by_token)


def sft(pairs: Pairs, config: DPOConfig) -> torch.Tensor:
    """Negative log-likelihood of the chosen completion: the term that RPO (arXiv 2404.19733) and MPO
    (arXiv 2411.10442) add to a preference loss. Divided by the chosen tokens of the step."""
    return pairs.chosen_nll


LOSSES: dict[str, Loss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "robust": robust,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
    "sft": sft,
}
DIVISORS = {"sft": "chosen_tokens"}  # which count of the step a loss is divided by; "pairs" where it isn't here

# ---------------------------------------------------------------- matching over the step


def matches(logps: list[tuple[float, float, float, float]]) -> list[dict[str, float]]:
    """What each pair of a step is matched with by `aot` and `aot_unpaired`.

    `logps`: of each pair of the step, on all ranks, the log-probs of chosen and rejected under the policy, and then
    under the reference. Gives for each pair the three `matched_*` of `Pairs`. Of equal values the earlier pair comes
    first.
    """
    policy = [chosen - rejected for chosen, rejected, _, _ in logps]
    reference = [ref_chosen - ref_rejected for _, _, ref_chosen, ref_rejected in logps]
    a = [chosen - ref_chosen for chosen, _, ref_chosen, _ in logps]
    b = [rejected - ref_rejected for _, rejected, _, ref_rejected in logps]
    return [
        {"matched_reference": one, "matched_rejected": two, "matched_chosen": three}
        for one, two, three in zip(_partners(policy, reference), _partners(a, b), _partners(b, a), strict=True)
    ]


def _partners(values: list[float], others: list[float]) -> list[float]:
    """For each value, the one of `others` that has the same place in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    partners = [0.0] * len(values)
    for index, other in zip(order, sorted(others), strict=True):
        partners[index] = other
    return partners
