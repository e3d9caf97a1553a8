"""How a field of a config is declared, and the values of some fields. Imports nothing heavy."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from ft_host.config.usual import Usual


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
    also: dict[Any, Any] | None = None,
    required: bool = False,
    unless: str | None = None,
    example: str | None = None,
    path: bool = False,
    compared: bool = True,
    usual: Usual | tuple[Usual, ...] | None = None,
) -> Any:
    """Declare a config field: its default, its meaning, and its allowed values.

    `group` is its heading in listings ("method" for a method's own), `choices` the allowed values (of each item, for a
    list), `ge`, `gt`, `le` its bounds, and `aliases` further names for flags and files. `was` are names from earlier
    versions: they still work, with a warning that has the new one. `also` are values of other tools, with ours:
    {theirs: ours}; they are taken, with a warning that has ours. A `required` field must be set and not be empty,
    unless the field `unless` is set; the error message shows `example`. With `path`, the field names files or folders:
    ~ and $VARIABLES in it are expanded, in texts, lists, and mappings that hold them, and a resumed run is refused if
    their content has changed; with `compared` False it isn't: the run writes there, or doesn't read it. `usual` is the
    range beyond which a value is suspected, or several, each of some runs; a field of the host that a method declares
    anew keeps the host's, unless it gives its own, () for none. A default that is a list or dict is copied per config.

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
        "also": also or {},
        "required": required,
        "unless": unless,
        "example": example,
        "path": path,
        "compared": compared,
        "usual": (usual,) if isinstance(usual, Usual) else usual,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# transformers' schedules that need no metric. Listed here, since asking transformers would mean importing it.
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

# accelerate's trackers, each also the module that it needs, with the name of its package.
TRACKERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet-ml",
    "clearml": "clearml",
    "aim": "aim",
    "dvclive": "dvclive",
    "swanlab": "swanlab",
}

# Names of the optimizers that ft_host.training.optim makes, with the one that each is: transformers has three for one.
OPTIMIZERS = {
    "adamw": "adamw",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "sgd": "sgd",
    "adafactor": "adafactor",
}
