"""The losses of sampled tokens: pure functions of `Tokens` and the config to (N,) values, in a table by name.

    q = p_new(t) / p_old(t), or for a whole completion its geometric mean over tokens      A: its advantage

`SCALES` has the factors of the values, and `DIVISORS` the count of the whole optimizer step that divides their sum. A
row without tokens (a masked completion) is in none of these counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ft_grpo.config import GRPOConfig


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a loss sees of N sampled tokens in R rows: (N,) tensors except `sizes`. Log-probs are in nats."""

    logps: torch.Tensor  # of the policy, with gradient
    old_logps: torch.Tensor  # of the policy that sampled, as the trainer computes them
    ratios: torch.Tensor  # q, with gradient; of one value a row with importance_sampling_level: sequence
    advantages: torch.Tensor  # of each token's row
    rows: torch.Tensor  # long, in [0, R)
    sizes: torch.Tensor  # (R,) tokens of each row
    corrections: torch.Tensor | None = None  # weights against a sampler that differs; None: all are 1

    @property
    def log_ratios(self) -> torch.Tensor:
        """Of each token, whatever the level of `ratios`."""
        return self.logps - self.old_logps


Loss = Callable[[Tokens, GRPOConfig], torch.Tensor]

# ---------------------------------------------------------------- by row


# Same as ft_sdpo.losses.row_sums
def row_sums(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """(N,) values of tokens, added up by row: (R,)."""
    return values.new_zeros(count).index_add(0, rows, values)


def row_means(values: torch.Tensor, rows: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return the means of (N,) values of tokens by row, (R,); 0 for rows without tokens."""
    return row_sums(values, rows, len(sizes)) / sizes.clamp(min=1)


# Same values as ft_sdpo.losses.ratios
def ratios(log_ratios: torch.Tensor, rows: torch.Tensor, sizes: torch.Tensor, level: str) -> torch.Tensor:
    """Return q of each token, (N,), from its log-ratio; with `level` "sequence" q of its row."""
    if level == "sequence":
        log_ratios = row_means(log_ratios, rows, sizes)[rows]
    return torch.exp(log_ratios)


# ---------------------------------------------------------------- losses


# Same values as ft_sdpo.losses.clipped
def clipped(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """PPO's objective (arXiv 1707.06347, eq. 7), as GRPO has it (arXiv 2402.03300, eq. 3):

    - min(q A, clip(q, 1 - epsilon, 1 + epsilon_high) A)         with `delta`, the first q is at most delta
    """
    q, near = tokens.ratios, tokens.ratios.clamp(1 - config.epsilon, config.clip_high)
    if config.delta is not None:
        q = q.clamp(max=config.delta)
    return -torch.minimum(q * tokens.advantages, near * tokens.advantages)


def cispo(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """CISPO, arXiv 2506.13585:  - sg(min(q, epsilon_high)) A log p.  No token loses its gradient."""
    return -tokens.ratios.clamp(max=config.clip_high).detach() * tokens.advantages * tokens.logps


def sapo(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """SAPO, arXiv 2511.20347:  - 4/T sigmoid(T (q - 1)) A,  T by the sign of A. A slope in place of a cut: at q = 1 it
    is that of q A."""
    positive, negative = config.sapo_temperature_pos, config.sapo_temperature_neg
    heat = torch.where(tokens.advantages > 0, positive, negative)
    return -torch.sigmoid(heat * (tokens.ratios - 1)) * 4 / heat * tokens.advantages


LOWEST, HIGHEST = math.log(1e-8), 20.0  # bounds of the logarithms of vespo's ratios, as in its authors' code


def gamma_weights(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """VESPO's weight of each row, (R,), without gradient:  phi(w) = w^k e^(lambda (1 - w)),  which is 1 at w = 1.

    w: the ratio of policy and sampler of the whole completion, the product over its tokens.
    """
    logs = tokens.log_ratios.detach().clamp(-HIGHEST, HIGHEST)
    if tokens.corrections is not None:
        logs = logs + tokens.corrections.log().clamp(LOWEST, HIGHEST)
    count = len(tokens.sizes)
    log_w = row_sums(logs, tokens.rows, count).clamp(LOWEST, HIGHEST)
    # rows without tokens don't matter
    gained = log_w.new_ones(count).index_copy(0, tokens.rows, (tokens.advantages >= 0).to(log_w.dtype)) > 0
    k = torch.where(gained, config.vespo_k_pos, config.vespo_k_neg)
    slope = torch.where(gained, config.vespo_lambda_pos, config.vespo_lambda_neg)
    return torch.exp(slope + k * log_w - slope * log_w.exp())


def vespo(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """VESPO, arXiv 2602.10693:  - phi(w) A log p,  see `gamma_weights`."""
    return -gamma_weights(tokens, config)[tokens.rows] * tokens.advantages * tokens.logps


LOSSES: dict[str, Loss] = {
    "grpo": clipped,
    "bnpo": clipped,
    "dr_grpo": clipped,
    "dapo": clipped,
    "luspo": clipped,
    "cispo": cispo,
    "sapo": sapo,
    "vespo": vespo,
}

# ---------------------------------------------------------------- how they are added up


def alike(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """All tokens count the same."""
    return tokens.advantages.new_ones(())


def by_row(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """The mean over the tokens of a row: a token of a short completion has more weight."""
    return 1 / tokens.sizes[tokens.rows]


def by_budget(tokens: Tokens, config: GRPOConfig) -> torch.Tensor:
    """Divided by the maximum completion length (Dr. GRPO, arXiv 2503.20783)."""
    return tokens.advantages.new_full((), 1 / config.max_completion_length)  # no copy from the host


# (N,) or a scalar factor of each token's value before they are summed; and the count of the step
# that divides the sum: all tokens (DAPO, arXiv 2503.14476) or the rows with tokens (GRPO; LUSPO, arXiv 2602.05261).
# bnpo is TRL's mean over the tokens of a micro-batch, which depends on how a step is cut; over the whole step it is
# dapo.
SCALES: dict[str, Callable[[Tokens, GRPOConfig], torch.Tensor]] = {
    "grpo": by_row,
    "bnpo": alike,
    "dr_grpo": by_budget,
    "dapo": alike,
    "luspo": alike,
    "cispo": alike,
    "sapo": by_row,
    "vespo": alike,
}
DIVISORS = {
    "grpo": "trained",
    "bnpo": "tokens",
    "dr_grpo": "trained",
    "dapo": "tokens",
    "luspo": "trained",
    "cispo": "tokens",
    "sapo": "trained",
    "vespo": "tokens",
}

# ---------------------------------------------------------------- what is added, and what is left out


def kl(tokens: Tokens, ref_logps: torch.Tensor, config: GRPOConfig) -> torch.Tensor:
    """Return an estimate of KL(policy | reference) at each token, (N,): k3 of joschu.net/blog/kl-approx.html.

    Multiplied by q with `use_bias_correction_kl`.
    """
    apart = ref_logps - tokens.logps
    estimate = torch.expm1(apart) - apart
    return estimate * tokens.ratios if config.use_bias_correction_kl else estimate


def off_policy_kept(tokens: Tokens, sampling_logps: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return 1.0 for tokens of rows to keep, else 0.0, (N,) (DeepSeek-V3.2, arXiv 2512.02556, eq. 9).

    Kept are rows with an advantage of at least 0, and those whose mean of log p_sampler - log p is at most
    `threshold`.
    """
    apart = row_means(sampling_logps - tokens.logps.detach(), tokens.rows, tokens.sizes)[tokens.rows]
    return ((tokens.advantages >= 0) | (apart <= threshold)).to(apart.dtype)


# Same values as ft_ppo.corrections.sampler_weights
def corrections(
    old_logps: torch.Tensor,  # (N,)
    sampling_logps: torch.Tensor,  # (N,)
    rows: torch.Tensor,  # (N,)
    sizes: torch.Tensor,  # (R,)
    config: GRPOConfig,
) -> torch.Tensor:
    """Return importance weights for a sampler that differs from the trainer, (N,), without gradient.

    p_old / p_sampler of each token, or the product over its row; limited to the bounds (truncated importance sampling,
    fengyao.notion.site/off-policy-rl), or 0 outside of them (IcePop, arXiv 2510.18855).
    """
    level, how = config.correction.split("_")
    logs = old_logps.detach() - sampling_logps
    if level == "sequence":
        logs = row_sums(logs, rows, len(sizes))[rows]
    weights = torch.exp(logs)
    smallest, largest = config.importance_sampling_clip_min or 0.0, config.importance_sampling_clip_max or math.inf
    if how == "truncate":
        return weights.clamp(smallest, largest)
    return weights.masked_fill((weights < smallest) | (weights > largest), 0.0)


# ---------------------------------------------------------------- statistics of tokens


# Entropies nearer than this, relative to the threshold above 1, are equal. Completions of a prompt share beginnings, so
# that equal contexts are systematic; their entropies in float32 (at most the log of the vocabulary, about 12) differ by
# round-off, some 1e-6, which depends on what else is in the micro-batch.
TIE = 1e-5


def highest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return which of (n,) values are in the highest `share`: at least the (1 - share) quantile, interpolated. (n,)
    bool. Values that are equal but for round-off (`TIE`) are all kept or none of them.
    """
    if not len(values):
        return values > 0
    ordered = values.sort().values
    place = round((len(values) - 1) * (1 - share), 6)  # 0.3 of 10 steps is exactly the third
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    threshold = torch.lerp(below, above, place - math.floor(place))
    return values >= threshold - TIE * threshold.abs().clamp(min=1.0)
