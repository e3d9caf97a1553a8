"""What a method's `ft_annotate` and `ft_step` are made with: values per row, from a model, without gradient.

    def reference_log_probs(model, batch):               # the method's: a batch of its ft_collate to values per row
        out = model(batch, want=("logp",))
        ...
        return {"ref_logps": sums}                       # each (rows,), in the order that ft_collate was given

    @hookimpl
    def ft_annotate(rows, run):
        return annotate(rows, run, "reference", reference_log_probs, identity=("prompt_ids", "completion_ids"))

`annotate` asks a companion, through the store where there is one; `evaluate_rows` asks the policy as it is now.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ft_host.batch import Batch
    from ft_host.run import Run

Row = dict[str, Any]
Values = Callable[[Any, "Batch"], "dict[str, torch.Tensor]"]


def annotate(
    rows: list[Row], run: Run, role: str, values: Values, *, identity: tuple[str, ...], key: str = ""
) -> list[Row]:
    """The rows, each with what `values(model, batch)` gives for it as further columns (Python floats).

    `model` is `run.models[role]`. Where its values are made ahead, those that the store has are taken from it, and new
    ones put there; a row is known by its columns `identity` (lists of token ids) and by `key`, which must name every
    setting that `values` depends on. All ranks must call it at once; one may have no rows.
    """
    raise NotImplementedError


def evaluate_rows(rows: list[Row], run: Run, values: Values) -> list[Row]:
    """As `annotate`, with the policy as it is now, in evaluation mode. Nothing is kept."""
    raise NotImplementedError
