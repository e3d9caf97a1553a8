"""A value model that shares the policy's states: one layer on them."""

from __future__ import annotations

import torch
from torch import nn


class ValueHead(nn.Module):
    """What a state is worth, read off the policy's own last hidden state."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Linear(width, 1)
        nn.init.normal_(self.value.weight, std=1 / (width + 1))
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, H) to {"value": (N,)}, in the type that the head is held in."""
        with torch.autocast(hidden.device.type, enabled=False):
            return {"value": self.value(hidden.to(self.value.weight.dtype)).squeeze(1).float()}
