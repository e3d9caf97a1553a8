"""An optimizer that records its gradients, so that those of several processes can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor


class RecordedAdamW(torch.optim.AdamW):
    """AdamW that writes the gradient of each step to `folder`, one file per rank; sharded gradients are gathered."""

    def __init__(self, params: Any, lr: float, folder: str):
        super().__init__(params, lr=lr, fused=True)
        self.folder = Path(folder)
        self.steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        grads = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        whole = [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        torch.save(torch.cat([grad.detach().flatten() for grad in whole]), self.folder / f"{rank}-{self.steps}.pt")
        return super().step(closure)


def recorded(folder: str | Path, rank: int, step: int) -> torch.Tensor:
    """The gradient of all parameters, flat, that `RecordedAdamW` was given at a step."""
    return torch.load(Path(folder) / f"{rank}-{step}.pt", weights_only=True)
