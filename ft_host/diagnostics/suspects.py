"""Settings that may be behind what a run suffers from: values beyond their usual range, and relations between fields.
Imports no torch.

    fields' own ranges (`option(..., usual=...)`), `SUSPECTS` of the host and of the method's rules
        ->  notes before training (CFG010)
        ->  the first remedies of a finding whose rule has a symptom that they explain

A suspect is a function of a View, as a rule is: it reads the config, facts, and metrics where they matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ft_host.config.fields import Field
from ft_host.config.usual import Usual
from ft_host.diagnostics.rule import Remedy
from ft_host.diagnostics.view import View, short

# Fields whose remedy a finding has measured better than a range can tell: its own stays, where it goes the same way.
SIZED = ("learning_rate", "num_train_epochs", "max_completion_length")
ALSO = {"forgetting": ("divergence",)}  # what breaks out forgets as well
OF_ADAPTERS = ("lora_dropout", "lora_r")
FACT = "suspect/"  # and the field
NOTES = "CFG010"  # the rule that notes them before training
RATE = "learning_rate"


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A setting that explains some symptoms. `usual`: in words, "0.01 to 1". `new`: what the remedy sets `field` to;
    `patch` where that is more than one field, or nothing, {}. `certain`: it can't be meant, whatever else the run
    shows: the note is a warning. `noted`: whether CFG010 says it before training.
    """

    field: str
    value: Any
    usual: str
    explains: tuple[str, ...]
    source: str
    new: Any = None
    patch: Mapping[str, Any] | None = None
    said: str = ""  # a clause for the message; by default "beta is 100 (usual: 0.01 to 1)"
    why: str = ""  # what it does: "the loss is satisfied at once"
    remedy: str = ""  # in the imperative; by default "Lower beta from 100 to 0.1"
    certain: bool = False
    noted: bool = True
    distance: float = 0.0  # how far from the range, in powers of ten

    @property
    def clause(self) -> str:
        return self.said or f"{self.field} is {shown(self.value)} (usual: {self.usual})"

    def as_remedy(self) -> Remedy:
        patch = {self.field: self.new} if self.patch is None else dict(self.patch)
        return Remedy(why=self.remedy or changed(self.field, self.value, self.new), patch=patch, again=True)


Function = Callable[[View], Iterable[Suspect]]


def shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return short(value)
    return "not set" if value is None else str(value)


def changed(name: str, value: Any, new: Any) -> str:
    """ "Lower beta from 100 to 0.1"."""
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (value, new))
    if not numbers:
        return f"Set {name} to {shown(new)}, from {shown(value)}"
    return f"{'Lower' if new < value else 'Raise'} {name} from {shown(value)} to {shown(new)}"


# ---------------------------------------------------------------- the ranges of fields


@dataclass(frozen=True)
class Ranges:
    """The suspects that the fields of a config class declare. `place` is the field that holds them, where that is a
    mapping of the run's config (`backend_config`)."""

    fields: Mapping[str, Field]
    place: str = ""

    def __call__(self, view: View) -> list[Suspect]:
        config = vars(view.config)
        values = config.get(self.place, {}) if self.place else config
        found = []
        for each in self.fields.values():
            value = values.get(each.name, each.default)
            usual = next((usual for usual in each.usual if usual.applies(values)), None)
            if usual is not None and value != each.default and (side := side_of(usual, value)):
                found.append(self._suspect(each, usual, value, side, values, view.get("model/adapter")))
        return found

    def _suspect(
        self, each: Field, usual: Usual, value: Any, side: int, values: Mapping[str, Any], adapter: str | None
    ) -> Suspect:
        new = each.default if usual.new is None else usual.new
        name = f"{self.place}.{each.name}" if self.place else each.name
        patch = {self.place: {**values, each.name: new}} if self.place else None
        folder = (
            adapter if each.name in OF_ADAPTERS else None
        )  # which is trained as it is: no field of a run changes it
        return Suspect(
            field=name,
            value=value,
            usual=usual.words,
            explains=usual.below if side < 0 else usual.above,
            source=usual.source,
            new=new,
            patch={} if folder else patch,
            remedy=f"Correct {each.name} in {folder}/adapter_config.json: {shown(new)} is usual" if folder else "",
            why=usual.reason(side),
            noted=usual.noted,
            certain=beyond(usual, value) >= usual.far,
            distance=math.log10(beyond(usual, value)),
        )


def side_of(usual: Usual, value: Any) -> int:
    """Of a list, the side of its first number that is beyond the range."""
    sides = [usual.side(each) for each in (value if isinstance(value, list) else [value])]
    return next((side for side in sides if side), 0)


def beyond(usual: Usual, value: Any) -> float:
    """How many times a value is beyond its range, from 1 on; 1e9 at most, which is what 0 is."""
    furthest = 1.0
    for each in value if isinstance(value, list) else [value]:
        bound = usual.low if usual.side(each) < 0 else usual.high
        if usual.side(each) and bound is not None:
            times = abs(each / bound) if bound else 0.0
            furthest = max(furthest, min(max(times, 1 / times), 1e9) if times else 1e9)
    return furthest


# ---------------------------------------------------------------- what a run asks


@dataclass
class Suspects:
    """All suspects of a run. `functions` are asked each time, since what they read may change; one that raises is asked
    no more, and `failed` says why. `strict`: it raises, for tests.
    """

    functions: Sequence[Function] = ()
    strict: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, view: View) -> list[Suspect]:
        """Return them, the surest first, one for each field."""
        found: dict[str, Suspect] = {}
        for function in self.functions:
            for suspect in self._ask(function, view):
                known = found.get(suspect.field)
                if known is None or (suspect.certain and not known.certain):
                    found[suspect.field] = suspect
        return sorted(found.values(), key=lambda each: (not each.certain, -each.distance))

    def behind(self, symptom: str, view: View) -> list[Suspect]:
        """Return those that explain a symptom; none for ""."""
        named = (symptom, *ALSO.get(symptom, ()))
        return [suspect for suspect in self.of(view) if set(named) & set(suspect.explains)] if symptom else []

    def look_at(self, view: View) -> dict[str, Any]:
        """Note in a view whose facts have changed what is suspected. Returns its facts of that, of what is suspected no
        more as well."""
        view.suspects = self.of(view)
        view.facts |= {f"{FACT}{suspect.field}": suspect.value for suspect in view.suspects}
        return {name: value for name, value in view.facts.items() if name.startswith(FACT)}

    def _ask(self, function: Function, view: View) -> list[Suspect]:
        if self.strict:
            return list(function(view))
        named = "the ranges of fields" if isinstance(function, Ranges) else repr(function)
        if named in self.failed:
            return []
        try:
            return list(function(view))
        except Exception as error:  # any error of a plugin's function
            self.failed[named] = f"{type(error).__name__}: {error}"
            return []


def with_suspects(message: str, remedies: list[Remedy], suspects: list[Suspect]) -> tuple[str, list[Remedy]]:
    """Return a finding's message and remedies with the suspects of its symptom first. Another learning rate is then no
    remedy, unless the rate is a suspect itself; nor is another value of a suspect."""
    if not suspects:
        return message, remedies
    by_field = {suspect.field: suspect for suspect in suspects}
    measured: dict[str, Remedy] = {}
    for remedy in remedies:
        for name in remedy.patch:
            if _same_way(by_field.get(name), remedy):
                measured.setdefault(name, remedy)
    first = [measured.get(suspect.field) or suspect.as_remedy() for suspect in suspects]
    left = [remedy for remedy in remedies if not remedy.patch.keys() & {*by_field, RATE}]
    first = [*_together(suspects, first), *first]
    said = "; ".join(suspect.clause for suspect in suspects)
    return f"{message} {said}.", [*first, *left]


def _together(suspects: list[Suspect], remedies: list[Remedy]) -> list[Remedy]:
    """Several settings changed at once: any of them may be enough to hold the run back. Where one can't be meant, those
    that may be are left as they are."""
    sure = suspects[0].certain
    chosen = {
        suspect.field: remedy
        for suspect, remedy in zip(suspects, remedies, strict=True)
        if suspect.certain == sure and remedy.patch
    }
    if len(chosen) < 2:
        return []
    patch: dict[str, Any] = {}
    for remedy in chosen.values():
        patch |= {name: value for name, value in remedy.patch.items() if name not in patch}
    measured = all(remedy.measured for remedy in chosen.values())
    steps = "; ".join(remedy.why[0].lower() + remedy.why[1:] for remedy in chosen.values())
    return [Remedy(why=f"Change {' and '.join(chosen)} at once: {steps}", patch=patch, again=True, measured=measured)]


def _same_way(suspect: Suspect | None, remedy: Remedy) -> bool:
    """Whether a remedy of a size that was measured moves a suspect to where it is to go."""
    if suspect is None or not (remedy.measured or suspect.field in SIZED):
        return False
    numbers = [remedy.patch[suspect.field], suspect.new, suspect.value]
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in numbers):
        return False
    return (numbers[0] > suspect.value) == (suspect.new > suspect.value)
