"""By which held-out figure two runs are compared that differ in some fields. Imports no torch.

A reward or an accuracy means the same in both. A loss does only where neither the method's own fields nor what rows are
cut to have changed: with another beta it is another loss, however low. Margins are beta times log-ratios, and are
divided by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ft_host.config.fields import fields_of
from ft_host.config.run import RunConfig
from ft_host.rundir.format import better
from ft_host.rundir.series import Series

# Groups of the host's fields that leave a loss what it is, and fields of other groups that do.
SAME_LOSS_GROUPS = ("optimisation", "batches", "lora", "evaluation", "run", "diagnostics", "distribution")
SAME_LOSS = ("dtype", "gradient_checkpointing", "segment_attention", "attn_implementation", "train_sampling_strategy")
# The most important first, and last of all the accuracy of tokens, which says less than their loss. Other figures
# (rewards/chosen) may go either way.
JUDGED = ("reward", "accuracies", "accuracy", "agreement", "scores", "margins", "loss")


def same_loss(changed: Iterable[str], but: tuple[str, ...] = ()) -> bool:
    """Return whether a loss means the same in two runs that differ in these fields, those of `but` aside."""
    fields = fields_of(RunConfig)
    return all(
        name in (*SAME_LOSS, *but) or (name in fields and fields[name].group in SAME_LOSS_GROUPS) for name in changed
    )


def judged_by(
    evals: Mapping[str, Series], changed: Iterable[str] = (), declared: dict[str, str] | None = None
) -> list[str]:
    """Return the held-out metrics that tell which of two runs is better, the most important first: those that mean the
    same in both. `changed`: the fields in which the two differ. `declared`: the method's `metric_directions`."""
    differ = list(changed)
    left_out = set()
    if not same_loss(differ):
        left_out.add("loss")
    if not same_loss(differ, but=("beta",)):
        left_out.add("margins")
    found = []
    for name in evals:
        end = name.removeprefix("eval_").split("/")[-1].split("_")[-1]
        if end in JUDGED and better(name, declared) and end not in left_out:
            found.append((len(JUDGED) if name.endswith("token_accuracy") else JUDGED.index(end), name))
    return [name for _, name in sorted(found)]


def scale_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the fields of a config that figures are multiples of: {"beta": 0.1}; {} where it has none."""
    return {"beta": config["beta"]} if config.get("beta") else {}


def plain(name: str, value: float, scale: Mapping[str, Any]) -> float:
    """Return a figure as it compares with that of a run of another beta. `scale`: as `scale_of`, or a config."""
    beta = scale.get("beta")
    return value / beta if name.endswith("margins") and beta else value
