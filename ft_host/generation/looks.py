"""The reading of what was sampled, which waits for the device as nothing else in decoding does."""

from __future__ import annotations

import torch

Sampled = tuple[torch.Tensor, torch.Tensor]  # (B,) tokens and their log-probs


def read(steps: list[Sampled]) -> list[tuple[list[int], list[float]]]:
    """Return each row's tokens and log-probs of these steps. One copy, which waits for all queued work."""
    tokens, logprobs = (torch.stack(values, 1) for values in zip(*steps, strict=True))
    # float32 holds every token of a vocabulary below 2**24
    both = torch.stack([tokens.to(logprobs.dtype), logprobs], 1).tolist()
    return [([int(token) for token in row], logps) for row, logps in both]
