"""Completions as rows to train on: data, layout and counting for methods that sample.

A column with a value per token has one per target: a token that the model sampled. Tool results between turns, and
tokens that a method masks, are no targets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ft_host.batch import IGNORE, Batch, Segment, flat_batch, per_target
from ft_host.metrics import Metric, maximum, mean, minimum
from ft_host.types import Row
from ft_host.util.moved import names_of

if TYPE_CHECKING:
    import torch

    from ft_host.generation import Completion

__getattr__ = names_of(__name__)


def completion_row(row: Row, completion: Completion) -> Row:
    """Return the row to train on of a completion of a prompt's row. JSON can hold it, as checkpoints keep it."""
    prompt_ids = completion.prompt_ids or row["prompt_ids"]
    sampled = completion.sampled or [True] * len(completion.token_ids)
    return {
        "group": row["group"],
        "prompt_ids": prompt_ids,
        "completion_ids": completion.token_ids,
        "sampled": sampled,
        "sampling_logps": [logp for logp, own in zip(completion.logprobs, sampled, strict=True) if own],
        "truncated": completion.finish_reason == "length",
        "length": len(prompt_ids) + len(completion.token_ids),
        "shared": len(prompt_ids),  # tokens shared by rows of the same group
    }


def masked_row(row: Row) -> Row:
    """Return the row without targets: it is in no loss and in no denominator."""
    return row | {"sampled": [False] * len(row["completion_ids"]), "sampling_logps": []}


def completion_segments(rows: list[Row]) -> list[Segment]:
    """Return segments: each prompt a root, its completions its children, so that a prompt is computed once for the rows
    of its group that follow each other. Row i of the batch is rows[i]."""
    segments: list[Segment] = []
    parent, last = 0, None
    for index, row in enumerate(rows):
        prompt, ids = row["prompt_ids"], row["completion_ids"]
        if last is None or row["group"] != last["group"] or prompt != last["prompt_ids"]:
            parent = len(segments)
            segments.append(Segment(input_ids=prompt, labels=[IGNORE] * len(prompt), row=index))
        last = row
        labels = [token if own else IGNORE for token, own in zip(ids, row["sampled"], strict=True)]
        segments.append(Segment(input_ids=ids, labels=labels, row=index, parent=parent))
    return segments


def completion_batch(
    rows: list[Row], *, targets: Iterable[str] = (), numbers: Iterable[str] = (), dtype: torch.dtype | None = None
) -> Batch:
    """Rows with a completion each as a batch of `completion_segments`.

    `targets`: columns of rows with a value a target, which become (N,) float32; `numbers`: those with one number a row,
    which become (R,) of `dtype`, float32 if none is given. One that not all rows have (they are not annotated yet, or
    need not be) is left out. Counts: `rows`, `trained` (rows with targets) and `tokens` (targets).
    """
    import torch

    columns = {name: per_target(rows, name) for name in targets if all(name in row for row in rows)}
    for name in numbers:
        if all(name in row for row in rows):
            columns[name] = torch.tensor([row[name] for row in rows], dtype=dtype or torch.float32)
    batch = flat_batch(completion_segments(rows), num_rows=len(rows), columns=columns)
    trained = sum(any(row["sampled"]) for row in rows)
    batch.counts = {"rows": len(rows), "trained": trained, "tokens": len(batch.targets)}
    return batch


def num_targets(row: Row) -> int:
    """Return the number of tokens in a completion's row that were sampled and not masked."""
    return sum(row["sampled"])


def sampling_metrics(apart: torch.Tensor, count: float, furthest: torch.Tensor | None = None) -> dict[str, Metric]:
    """Return the difference of the sampler's log-probs from the trainer's, in nats: the metrics
    `sampling/sampling_logp_difference/mean` over `count` targets, and `max`. `apart`: absolute differences of targets,
    (N,), 0 for tokens that something else sampled; or their sums by row, (R,), with the largest of each row as
    `furthest`. Empty if `count` is 0."""
    if not count:
        return {}
    return {
        "sampling/sampling_logp_difference/mean": mean(apart.sum(), count),
        "sampling/sampling_logp_difference/max": maximum((apart if furthest is None else furthest).max()),
    }


def completion_metrics(completions: list[Completion]) -> dict[str, Metric]:
    """Return metrics of lengths in sampled tokens, of all completions and of those that ended, and the share that was
    cut short."""
    sizes = [sum(item.sampled) if item.sampled else len(item.token_ids) for item in completions]
    ended = [size for size, item in zip(sizes, completions, strict=True) if item.finish_reason != "length"]
    metrics: dict[str, Metric] = {}
    for name, values in (("length", sizes), ("terminated_length", ended)):
        if values:
            metrics[f"completions/mean_{name}"] = mean(sum(values), len(values))
            metrics[f"completions/min_{name}"] = minimum(min(values))
            metrics[f"completions/max_{name}"] = maximum(max(values))
    if sizes:
        metrics["completions/clipped_ratio"] = mean(len(sizes) - len(ended), len(sizes))
    return metrics
