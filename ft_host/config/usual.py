"""Which values of a field are usual, as `option(..., usual=...)` declares it. Imports nothing heavy.

A value beyond its range is allowed. It is noted before training (CFG010), and it is the first suspect of a symptom that
it explains: then the remedy is that field, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# What a run may suffer from, as `Rule.symptom` names it.
SYMPTOMS = {
    "no_learning": "nothing, or next to nothing, is learnt",
    "divergence": "loss, updates or policy break out",
    "saturation": "the loss is satisfied, and teaches nothing more",
    "no_signal": "what is compared is the same, or counts for nothing",
    "no_variety": "completions are all alike",
    "forgetting": "what the model could do is lost",
    "overfitting": "what is learnt serves the rows of the training alone",
    "bad_start": "before any update the model does worse than it should",
    "imbalance": "few experts get most of the tokens",
    "slow": "training waits for completions",
    "cut": "texts are cut short",
}


@dataclass(frozen=True, kw_only=True)
class Usual:
    """The usual range of a numeric field; of each number, where the field is a list.

    `low` and `high` belong to it; None: no bound. `below` and `above` are the symptoms (of `SYMPTOMS`) that a value
    below or above it explains. `off` are values that turn something off, and are in no range. `only` says of which runs
    the range is: {field: its values}; a field that is a list must have one of them. `new` is what a remedy sets; None:
    the field's default. `far` is how many times beyond the range a value can't be meant any more: the note is then a
    warning. `noted` is False where a rule of its own says as much before training.

    Raises ValueError for a range without bounds or source, or an unknown symptom.
    """

    low: float | None = None
    high: float | None = None
    below: tuple[str, ...] = ()
    above: tuple[str, ...] = ()
    # What a value beyond it does, as a clause: "each update is rounded away"; of below and above, where that differs.
    why: str | tuple[str, str] = ""
    source: str = ""
    off: tuple[Any, ...] = ()
    only: Mapping[str, tuple[Any, ...] | range] = field(default_factory=dict)
    new: Any = None
    far: float = 100.0
    noted: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.below, *self.above) if name not in SYMPTOMS]
        if unknown:
            raise ValueError(f"usual: {unknown[0]!r} is no symptom; expected some of {', '.join(SYMPTOMS)}")
        if self.low is None and self.high is None:
            raise ValueError("usual: neither low nor high is given, so every value is usual")
        if not self.source:
            raise ValueError("usual: source is empty; expected a paper, a project, or 'own judgement'")

    def applies(self, config: Mapping[str, Any]) -> bool:
        """Return whether it is about a run with these fields."""
        return all(_has(config.get(name), values) for name, values in self.only.items())

    def side(self, value: Any) -> int:
        """Return -1 for a value below the range, 1 for one above it, else 0; also for what is no number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value in self.off:
            return 0
        if self.low is not None and value < self.low:
            return -1
        return int(self.high is not None and value > self.high)

    def reason(self, side: int) -> str:
        """Return what a value below (-1) or above (1) the range does."""
        return self.why if isinstance(self.why, str) else self.why[side > 0]

    @property
    def words(self) -> str:
        """ "0.01 to 1", "at most 0.3", "at least 0.01"."""
        if self.low is None:
            return f"at most {_number(self.high)}"
        if self.high is None:
            return f"at least {_number(self.low)}"
        return f"{_number(self.low)} to {_number(self.high)}"


def _has(found: Any, values: tuple[Any, ...] | range) -> bool:
    several = found if isinstance(found, list) else [found]
    if isinstance(values, range):  # Python looks for None in a range by comparing it with each number
        several = [each for each in several if isinstance(each, int)]
    return any(each in values for each in several)


def _number(value: float | None) -> str:
    """Format a bound as a person writes it: 1e-08 as 1e-8, 1.0 as 1."""
    mantissa, mark, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa
