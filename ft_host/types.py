"""The values that hooks are given and give back, plain and importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.util.moved import old_keywords

if TYPE_CHECKING:
    import torch

    from ft_host.metrics import Metric


NO_SCORES = "backend: {} has no ft_score, so it can't score tokens with another model"


class Drop(str):
    """Returned by `ft_prepare` to leave a row out; the text is the reason it is counted under."""


@dataclass(kw_only=True)
class LossOutput:
    """`loss`: a scalar with gradient, already divided by the step's totals. `metrics`: sums, see `ft_host.metrics`."""

    loss: torch.Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)


@old_keywords(
    {
        "ahead": "precompute",
        "live": "current_policy",
        "own_tokens": "own_tokenizer",
        "padded": "allow_padded_vocab",
        "otherwise": "hint",
    }
)
@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of a run, as `ft_models` asks for it. As it stands: the policy as the run found it, frozen.

    Where that one is needed no second copy is made that can be saved: with LoRA it is the policy with its adapter off
    (or with a frozen copy of the adapter that training started from).
    """

    source: str | None = None  # folder or hub id; None: the policy as the run found it
    field: str | None = None  # the config field that `source` is from, which a refusal names
    revision: str | None = None  # of a hub id
    # Whether the sizes of the two vocabularies may differ, by rows of the embedding that are no token of the tokenizer.
    allow_padded_vocab: bool = False
    own_tokenizer: bool = False  # it reads tokens of its own, and the method sees to it: vocabularies aren't compared
    hint: str = ""  # what the refusal of another vocabulary adds: what to use instead
    head: str | None = None  # None: a language model; "reward": one score a row; "value": one before each target
    # What `ft_annotate` makes with this model is made before the first step and kept on disk, and no copy is held:
    # "rows": it depends on the row alone, "steps": on the rows that share its step. None: the model is held.
    precompute: str | None = None
    sync_steps: int | None = None  # mix the policy in after every so many steps
    sync_alpha: float = 1.0  # the policy's share of the mixture
    current_policy: bool = False  # no model of its own: the policy itself, as it is at each call, without gradient
    # Trained beside the policy, inside it: `model(batch, want=("value", ...))` asks it. Head "value" alone, so far.
    trained: bool = False
    shares_policy: bool = False  # no model of its own, but a layer on the policy's hidden states


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What `ft_host.train` returns: where the run is and the last value of each metric."""

    folder: Path
    steps: int
    metrics: dict[str, float]
    findings: list[dict[str, Any]] = field(default_factory=list)  # as they ended; as in findings.jsonl
    failed: bool = False  # whether one is open that `fail_on` is about
