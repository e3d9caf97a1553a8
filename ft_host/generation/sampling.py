"""Token sampling, the same for every way that the backend `transformers` runs the model.

Written here and not left to `generate`, for three reasons. The noise is a function of the seed and the request alone,
independent of batches and ranks. The random state of the training doesn't change. Only one [batch, vocabulary] tensor
is alive at a time, where `output_scores` keeps one for each token.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ft_host.generation import Sampling


def sample_token(
    logits: torch.Tensor, sampling: Sampling, noise: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample from (B, V) float32 logits with (B,) uniform noise in [0, 1): return (B,) tokens and (B,) log-probs.

    `seen` (B, V) marks the tokens in each text so far, prompt included; a repetition penalty needs it.

    The log-prob is under the distribution that was sampled: after repetition penalty, temperature, top_k, top_p and
    min_p, in this order, as in transformers. Greedy decoding (temperature 0) samples from no distribution; its log-prob
    is the one at temperature 1.
    """
    if sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.temperature == 0:
        token = logits.argmax(-1)
        return token, _at(logits.log_softmax(-1), token)
    logp = (logits if sampling.temperature == 1 else logits / sampling.temperature).log_softmax(-1)
    if 0 < sampling.top_k < logp.shape[-1]:
        least = logp.topk(sampling.top_k).values[:, -1:]
        logp = logp.masked_fill(logp < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ordered, order = logp.sort(descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # the mass of all likelier tokens: the first always stays
        cut = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logp = logp.masked_fill(cut, -torch.inf).log_softmax(-1)
    if sampling.min_p > 0:
        least = logp.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logp = logp.masked_fill(logp < least, -torch.inf).log_softmax(-1)
    upto = logp.exp().cumsum(-1)
    total = upto[:, -1:]
    # noise just below 1 may round up to the total, which no cumulative sum exceeds
    below = torch.minimum(noise[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(upto, below, right=True)[:, 0]
    return token, _at(logp, token)


def _at(values: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, token[:, None])[:, 0]


def noise_of(seed: int, number: int, length: int) -> np.ndarray:
    """Return (length,) float32 in [0, 1): the noise of request `number`, independent of the other requests."""
    return np.random.default_rng([seed, number]).random(length, dtype=np.float32)


def tokens_seen(ids: torch.Tensor, mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return (B, V) bool: the tokens in each text. `ids` and `mask`, both (B, L), are padded on the left."""
    own = torch.where(mask > 0, ids, ids[:, -1:])  # the padding's token may be one of the text
    return torch.zeros(len(ids), vocabulary, dtype=torch.bool, device=ids.device).scatter_(1, own, True)
