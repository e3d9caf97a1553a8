"""The recorded run of a package, compared: its numbers must not move without anybody saying so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.registry.conformance import package_folder
from ft_host.testing.conformance.check import Check, DoesNotApply, Figures, NotMet
from ft_host.testing.conformance.numbers import REL, Line, compare
from ft_host.testing.invariants import fixed_completions_of, lines, run_in, tensors

if TYPE_CHECKING:
    from ft_host.testing.conformance.run import Suite
    from ft_host.testing.conformance.subject import Subject

FILE = "golden.json"
FORMAT = 1
ABS = 1e-4  # of metrics near 0: other instructions of a processor round differences of large numbers otherwise
DRIFT = 2e-5  # of a loss, where the difference has one sign and grows with each step
DIGITS = 8  # more than float32 has
LEFT_OUT = ("kind", "epoch", "learning_rate")  # of the host's settings, not of the method


def golden(suite: Suite) -> dict[str, Any] | None:
    """What golden.json of a package holds: for each of its methods the numbers of a tiny run of five steps, and the
    size of the model that it began with. None for a package without methods."""
    methods = suite.usable("method")
    if not methods:
        return None
    found = {info.name: trajectory(suite.subject("golden", info)) for info in methods}
    return {"format": FORMAT, "versions": versions(), "methods": found}


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ft-host", "torch", "transformers")}


def trajectory(subject: Subject) -> dict[str, Any]:
    """Five steps of four rows. Rollouts are of completions that don't depend on the weights: round-off, which differs
    between machines, could turn a sampled token into another."""
    with fixed_completions_of(subject.config()) as config:
        folder = run_in(config, "golden")
    steps = [{name: rounded(line[name]) for name in sorted(line.keys() - set(LEFT_OUT))} for line in lines(folder)]
    return {"model": norm_of(config.model), "steps": steps}


def rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def norm_of(model: Any) -> float:
    squares = sum(float((tensor.double() ** 2).sum()) for tensor in tensors(Path(model)).values())
    return rounded(math.sqrt(squares))


def compared(subject: Subject) -> Figures:
    folder = package_folder(subject.plugin)
    file = folder / FILE if folder else None
    if file is None or not file.is_file():
        raise DoesNotApply(f"the package has no {FILE}; `ft-host check --record` makes it")
    try:
        recorded = json.loads(file.read_text(encoding="utf-8"))
        made_with = recorded["versions"]
        expected = recorded["methods"].get(subject.plugin.name)
        written = recorded["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotMet(f"{file} can't be read: {type(error).__name__}: {error}; delete it and record again") from error
    if written != FORMAT:
        raise NotMet(f"{file} has format {written}, and this ft-host reads {FORMAT}; delete it and record again")
    if expected is None:
        raise NotMet(f"{file} has no run of {subject.plugin.name}; delete it and record again")
    found = trajectory(subject)
    if not math.isclose(found["model"], expected["model"], rel_tol=1e-6):
        raise DoesNotApply(
            f"the suite's model isn't the one of the record (its norm is {found['model']}, and was"
            f" {expected['model']}); delete {FILE} and record again"
        )
    how = f"compared with the record of {', '.join(f'{name} {version}' for name, version in made_with.items())}"
    worst = compare(expected["steps"], found["steps"], how, abs=ABS)
    drifting(expected["steps"], found["steps"], how)
    return {"apart": worst, "recorded_with": made_with}


def drifting(expected: list[Line], found: list[Line], how: str) -> None:
    """Raise NotMet for losses that move away one way, further at each step: round-off seldom does, however small."""
    apart = [
        (other["loss"] - one["loss"]) / max(math.fabs(one["loss"]), 0.1)
        for one, other in zip(expected, found, strict=True)
    ]
    one_way = all(value > 0 for value in apart) or all(value < 0 for value in apart)
    grows = all(math.fabs(later) > math.fabs(earlier) for earlier, later in zip(apart, apart[1:], strict=False))
    if one_way and grows and math.fabs(apart[-1]) > DRIFT:
        raise NotMet(f"{how}: the loss drifts away, by {', '.join(f'{value:.1e}' for value in apart)} of it")


CHECKS: list[Check] = [
    Check(
        id="recorded-run",
        title="A tiny run has the numbers that the package has on record",
        about="method",
        why="A refactoring, another version of a library or a mended detail may move each number a little, in a way "
        "that no other check sees.",
        looks_at=f"Five steps on the suite's model, against `{FILE}` in the package: loss, gradient norm and metrics "
        f"to {REL:.0e} of their size, and no loss that moves away further at each step. Rollouts are of completions "
        "that don't depend on the weights. A package without the file is left out.",
        mend="Look for what has changed. Where it was meant, say so in the changelog, delete the file, and make it "
        "again with `ft-host check --record`.",
        test=compared,
    )
]
