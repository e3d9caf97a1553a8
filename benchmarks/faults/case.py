"""What a case of the benchmark of faults is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of one family, and what is to be found in it. A healthy one has no `cause`.

    `config` is on top of the family's `BASE` for the method. In both, "@model/NAME" is a model of `material`,
    "@data/NAME" a file of rows, "@rewards:NAME" a function in the family's `REWARDS`. `train` and `held_out` name a
    function of `broken_data` that the rows of `dataset` and `eval_dataset` go through; `patch` names a context manager
    of `broken_parts` that the run is made in, with its arguments.

    A finding *names* the fault if it has a code of `cause`, or if it sends the user to a field of `at_fault`. It
    *misleads* if it sends him to a field that isn't at fault, and its code is neither in `cause` and `partly` nor in
    `beside`. Codes may be beginnings of codes.
    """

    name: str
    family: str
    method: str
    what: str  # what is wrong, or what makes it look wrong, in a few words
    config: dict[str, Any] = field(default_factory=dict)
    train: str | None = None
    held_out: str | None = None
    patch: tuple[str, dict[str, Any]] | None = None
    cause: tuple[str, ...] = ()  # codes that name the fault, the one that says most first
    partly: tuple[str, ...] = ()  # codes that point to the right part of the run
    at_fault: tuple[str, ...] = ()  # fields of the config, or "data", "reward", "model", "code", "machine"
    beside: tuple[str, ...] = ()  # codes of consequences, which may stand beside it without misleading
    visible: int = 1  # the first step whose numbers the fault is in; 0: before training
    held_out_metric: tuple[str, str] = ("eval_loss", "lower")  # what a cure is judged by

    @property
    def id(self) -> str:
        return f"{self.family}/{self.name}"

    @property
    def healthy(self) -> bool:
        return not self.cause
