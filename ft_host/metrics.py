"""Metrics as sums, so that a mean over micro-batches and ranks is the mean over items.

A hook returns metrics. It never logs them, and never turns a tensor into a Python number, which would wait for the
device at every micro-batch. The host adds them up (`Accumulator`) and reads them once per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SUM, MIN, MAX = "sum", "min", "max"


@dataclass(frozen=True)
class Metric:
    """Parts, each reduced by sum, min or max, and the name of the formula that makes a number of them."""

    formula: str
    parts: tuple[tuple[str, Any], ...]


def mean(total: torch.Tensor | float, count: torch.Tensor | float) -> Metric:
    """Return `total / count`, each summed over micro-batches and ranks first. Without items the metric is absent."""
    return Metric("mean", ((SUM, total), (SUM, count)))


def total(value: torch.Tensor | float) -> Metric:
    """Return the sum over micro-batches and ranks."""
    return Metric("total", ((SUM, value),))


def minimum(value: torch.Tensor | float) -> Metric:
    """Return the smallest value over micro-batches and ranks."""
    return Metric("minimum", ((MIN, value),))


def maximum(value: torch.Tensor | float) -> Metric:
    """Return the largest value over micro-batches and ranks."""
    return Metric("maximum", ((MAX, value),))


def std(total: torch.Tensor | float, squares: torch.Tensor | float, count: torch.Tensor | float) -> Metric:
    """Return the unbiased standard deviation from sum, sum of squares and count. With fewer than two items it is
    absent.
    """
    return Metric("std", ((SUM, total), (SUM, squares), (SUM, count)))


def variance(total: torch.Tensor | float, squares: torch.Tensor | float, count: torch.Tensor | float) -> Metric:
    """Return the square of `std`."""
    return Metric("variance", ((SUM, total), (SUM, squares), (SUM, count)))


def effective_share(total: torch.Tensor | float, squares: torch.Tensor | float, count: torch.Tensor | float) -> Metric:
    """Return Kish's effective sample size of weights, divided by their number: total^2 / (count squares).

    1 where all weights are equal. Absent without items, or where all weights are 0.
    """
    return Metric("effective_share", ((SUM, total), (SUM, squares), (SUM, count)))


def correlation(
    x: torch.Tensor | float,
    y: torch.Tensor | float,
    xx: torch.Tensor | float,
    yy: torch.Tensor | float,
    xy: torch.Tensor | float,
    count: torch.Tensor | float,
) -> Metric:
    """Return Pearson's correlation from the sums of two quantities, of their squares and of their products.

    Absent where either quantity is constant.
    """
    return Metric("correlation", tuple((SUM, part) for part in (x, y, xx, yy, xy, count)))


def explained(
    errors: torch.Tensor | float,
    total: torch.Tensor | float,
    squares: torch.Tensor | float,
    count: torch.Tensor | float,
) -> Metric:
    """Return the share of a quantity's variance that a prediction explains: 1 is all, 0 no more than a constant, below
    0 less.

    From the sum of squared errors, and the sum, sum of squares and count of the quantity. Absent where it is constant.
    """
    return Metric("explained", tuple((SUM, part) for part in (errors, total, squares, count)))


FLAT = 1e-6  # a variance below this share of the mean square is round-off: Python numbers are summed as float32


def _variance(total: float, squares: float, count: float) -> float | None:
    if count < 2:
        return None
    return max(squares - total * total / count, 0.0) / (count - 1)


def _std(total: float, squares: float, count: float) -> float | None:
    value = _variance(total, squares, count)
    return None if value is None else value**0.5


def _spread(total: float, squares: float, count: float) -> float | None:
    """Return the sum of squared distances from the mean, or None where it is only round-off."""
    if count < 2:
        return None
    left = squares - total * total / count
    return left if left > FLAT * squares else None


def _correlation(x: float, y: float, xx: float, yy: float, xy: float, count: float) -> float | None:
    of_x, of_y = _spread(x, xx, count), _spread(y, yy, count)
    return None if of_x is None or of_y is None else (xy - x * y / count) / (of_x * of_y) ** 0.5


def _explained(errors: float, total: float, squares: float, count: float) -> float | None:
    spread = _spread(total, squares, count)
    return None if spread is None else 1 - errors / spread


FORMULAS: dict[str, Callable[..., float | None]] = {
    "mean": lambda total, count: total / count if count else None,
    "total": lambda value: value,
    "minimum": lambda value: value,
    "maximum": lambda value: value,
    "std": _std,
    "variance": _variance,
    "correlation": _correlation,
    "explained": _explained,
    "effective_share": lambda total, squares, count: total * total / (count * squares) if squares else None,
}


@dataclass
class Accumulator:
    """Sums the metrics of micro-batches on their device. `local` reads them, `combine` reduces them over ranks."""

    formulas: dict[str, str] = field(default_factory=dict)
    parts: dict[tuple[str, int], tuple[str, Any]] = field(default_factory=dict)

    def add(self, metrics: dict[str, Metric]) -> None:
        import torch

        from ft_host.util import devices

        for name, metric in metrics.items():
            known = self.formulas.setdefault(name, metric.formula)
            if known != metric.formula:
                raise ValueError(f"metric {name!r} was a {known} and is now a {metric.formula}")
            for index, (how, value) in enumerate(metric.parts):
                # a Python number is a double; torch would make it a float32
                kind = None if isinstance(value, torch.Tensor) else torch.float64
                value = devices.widened(torch.as_tensor(value, dtype=kind).detach())
                if value.dim():
                    raise ValueError(f"metric {name!r}: a part has shape {tuple(value.shape)}, expected a scalar")
                key = (name, index)
                if key not in self.parts:
                    self.parts[key] = (how, value)
                    continue
                # one of them may be a number of the host, which goes to a kernel as one, in a type that the kernel has
                old = self.parts[key][1].to(devices.widest(value.device))
                value = value.to(devices.widest(old.device))
                merge: dict[str, Callable[..., Any]] = {SUM: torch.add, MIN: torch.minimum, MAX: torch.maximum}
                merged = merge[how](old, value)
                self.parts[key] = (how, merged)

    def local(self) -> dict[str, tuple[str, list[tuple[str, float]]]]:
        """Return this rank's parts as Python numbers, for `combine` and to be sent between ranks. One look at the
        device for all of them."""
        import torch

        parts = sorted(self.parts.items(), key=lambda item: item[0])
        by_device: dict[torch.device, list[int]] = {}
        for index, (_, (_, value)) in enumerate(parts):
            by_device.setdefault(value.device, []).append(index)
        numbers = [0.0] * len(parts)
        for indices in by_device.values():
            for index, number in zip(indices, torch.stack([parts[index][1][1] for index in indices]).tolist()):
                numbers[index] = number
        out: dict[str, tuple[str, list[tuple[str, float]]]] = {}
        for ((name, _), (how, _)), number in zip(parts, numbers):
            out.setdefault(name, (self.formulas[name], []))[1].append((how, number))
        return out


def combine(ranks: list[dict[str, tuple[str, list[tuple[str, float]]]]]) -> dict[str, float]:
    """Return the metrics of all ranks as numbers. A name that only some ranks have is reduced over those ranks."""
    how_to: dict[str, Callable[..., Any]] = {SUM: sum, MIN: min, MAX: max}
    out = {}
    for name in dict.fromkeys(name for rank in ranks for name in rank):
        held = [rank[name] for rank in ranks if name in rank]
        formula, first = held[0]
        values = [how_to[how](parts[index][1] for _, parts in held) for index, (how, _) in enumerate(first)]
        number = FORMULAS[formula](*values)
        if number is not None:
            out[name] = number
    return out


def add_counts(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    """Return the sums of counts by name."""
    out: dict[str, float] = {}
    for row in counts:
        for name, value in row.items():
            out[name] = out.get(name, 0) + value
    return out
