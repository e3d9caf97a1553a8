"""What a case of the benchmark of faults is. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, and what is to be found in it. A healthy one has no `expected`.

    In `config`, "@model/NAME" is a model of `material.MODELS`, "@data/NAME" a file of `material.make_data`,
    "@rewards:NAME" and "@arithmetic:NAME" a reward function, here or of the arithmetic example. `train` and `held_out`
    name a function of `broken_data` that the rows of `dataset` and `eval_dataset` go through; `patch` names a context
    manager of `broken_parts` that the run is made in, with its arguments.
    """

    name: str
    method: str
    what: str  # what is wrong, or what makes it look wrong, in a few words
    config: dict[str, Any] = field(default_factory=dict)  # on top of `list.BASE`
    train: str | None = None
    held_out: str | None = None
    patch: tuple[str, dict[str, Any]] | None = None
    expected: tuple[str, ...] = ()  # codes, any of which is right; the one that says most comes first
    beside: tuple[str, ...] = ()  # codes, or beginnings of codes, that may be found too: consequences of the fault
    visible: int = 1  # the first step whose numbers the fault is in; 0: before training

    @property
    def healthy(self) -> bool:
        return not self.expected
