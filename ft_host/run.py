"""What a hook is handed, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ft_host.config import RunConfig
    from ft_host.generation import Completion, Request, Sampling
    from ft_host.metrics import Metric


class Drop(str):
    """Returned by `ft_prepare` to leave a row out; the text is the reason it is counted under."""


@dataclass(kw_only=True)
class LossOutput:
    """`loss`: a scalar with gradient, already divided by the step's totals. `metrics`: sums, see `ft_host.metrics`."""

    loss: torch.Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)
