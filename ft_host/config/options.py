"""How a field of a config is declared, and the values that some may have. Imports nothing heavy."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    group: str = "method",
    choices: tuple[Any, ...] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    aliases: tuple[str, ...] = (),
    was: tuple[str, ...] = (),
    required: bool = False,
    unless: str | None = None,
    example: str | None = None,
) -> Any:
    """A config field: its default, what it means, and what it may be.

    `group` is the heading it is listed under ("method" for a method's own), `choices` the values it may have (of a
    list: each of its items), `ge`, `gt`, `le` its bounds, and `aliases` further names that flags and files may use for
    it. `was` are names that the field had in earlier versions: they still work, with a warning that has the new one. A
    `required` field must be given something that isn't empty, where the field `unless` isn't given, and `example` is
    what the refusal shows. A default that is a list or dict is copied per config.

    Types: str, bool, int, float, list[...] and dict[str, ...] of those or of Any, and unions of them with None.
    """
    metadata = {
        "help": help,
        "group": group,
        "choices": choices,
        "ge": ge,
        "gt": gt,
        "le": le,
        "aliases": aliases,
        "was": was,
        "required": required,
        "unless": unless,
        "example": example,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# Those of transformers that need no metric to decide. Listed here, as asking transformers would mean importing it.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
)

# Names of the optimizers that ft_host.training.optim makes, with the one that each is: transformers has three for one.
OPTIMIZERS = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "sgd": "sgd",
    "adafactor": "adafactor",
}
