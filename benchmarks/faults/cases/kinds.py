"""How a kind of fault becomes a case of each family. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from case import Case
from families import FAMILIES
from families.base import HELD_OUT


@dataclass(frozen=True)
class Times:
    """The family's own value, times this."""

    by: float


@dataclass(frozen=True)
class Own:
    """A constant of the family, such as RIGHT."""

    name: str


ENDED = ("SYS005",)  # that a run ended with an error follows from what it ended with
RIGHT = Own("RIGHT")
ALL = tuple(FAMILIES)
TEXTS = ("arithmetic", "transduction", "gsm8k")  # whose prompts aren't conversations
SOLVABLE = ("arithmetic", "transduction", "lookup", "dates")  # whose answers a small model can find


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault, or what makes a healthy run look wrong, in the families that it can be made in. Fields as in `Case`;
    values of `config` may be `Times` and `Own`, and `own` has more of them for single families."""

    name: str
    method: str
    what: str
    config: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    families: Sequence[str] = ALL
    train: str | None = None
    held_out: str | None = None
    patch: tuple[str, dict[str, Any]] | None = None
    cause: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    at_fault: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    visible: int = 1
    held_out_metric: tuple[str, str] | None = None

    def cases(self) -> list[Case]:
        return [self.case(name, FAMILIES[name]) for name in self.families if self.method in FAMILIES[name].BASE]

    def case(self, family: str, module: ModuleType) -> Case:
        base = module.BASE[self.method]
        config = {**self.config, **self.own.get(family, {})}
        return Case(
            name=self.name,
            family=family,
            method=self.method,
            what=self.what,
            config={name: of_family(value, base.get(name), module) for name, value in config.items()},
            train=self.train,
            held_out=self.held_out,
            patch=self.patch,
            cause=self.cause,
            partly=self.partly,
            at_fault=self.at_fault,
            beside=(*self.beside, *ENDED) if self.cause else (),
            visible=self.visible,
            held_out_metric=self.held_out_metric or HELD_OUT[self.method],
        )


def of_family(value: Any, base: Any, module: ModuleType) -> Any:
    if isinstance(value, Times):
        return float(f"{base * value.by:.3g}")
    if isinstance(value, Own):
        return vars(module)[value.name]
    return [of_family(each, None, module) for each in value] if isinstance(value, list) else value
