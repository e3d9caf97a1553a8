"""Noise on embeddings in training (NEFTune, arXiv 2310.05914)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from ft_host.batch import Batch
from ft_host.util.transfer import to_device


class EmbeddingNoise:
    """Adds uniform noise between -alpha / sqrt(L d) and that to what an embedding of d dimensions gives, L: the tokens
    of the row that a token stands in. Only within `over`.

    As the paper's code has it. transformers takes the length of the padded batch for L, so that there the noise of a
    row depends on what stands beside it.
    """

    def __init__(self, embedding: nn.Module, alpha: float):
        self.alpha = alpha
        self.lengths: torch.Tensor | None = None  # of each token's row, in the shape of the token ids
        embedding.register_forward_hook(self.add)

    @contextlib.contextmanager
    def over(self, lengths: torch.Tensor) -> Iterator[None]:
        """Forward passes within it are noisy. `lengths`: of each token's row, in the shape of the token ids."""
        self.lengths = lengths
        try:
            yield
        finally:
            self.lengths = None

    def add(self, module: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        if self.lengths is None:
            return out
        bound = self.alpha / (self.lengths.to(torch.float32) * out.shape[-1]).sqrt()
        return out + torch.empty_like(out).uniform_(-1, 1) * bound.unsqueeze(-1).to(out.dtype)


def noisy(
    noise: EmbeddingNoise | None, learns: bool, lengths: Callable[[], torch.Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Return the context of a forward pass: with noise where the run has it and the pass is one of training. `lengths`
    is called where it is."""
    return contextlib.nullcontext() if noise is None or not learns else noise.over(lengths())


def row_lengths(batch: Batch) -> torch.Tensor:
    """Return the tokens of each token's row, (1, T): of its segment and all that it descends from."""
    whole: list[int] = []
    for length, parent in zip(batch.lengths, batch.parents, strict=True):
        whole.append(length + (whole[parent] if parent >= 0 else 0))
    lengths = torch.tensor(whole, dtype=torch.long).repeat_interleave(torch.tensor(batch.lengths, dtype=torch.long))
    return to_device([lengths], batch.input_ids.device)[0][None]
