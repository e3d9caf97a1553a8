"""The logged numbers of runs, compared: what a check says where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ft_host.testing.conformance.check import NotMet

Line = dict[str, Any]
# Round-off of float32 over a few steps: Adam makes more of it where a gradient is close to 0. What a mistake changes is
# larger by orders of magnitude.
REL = 1e-4
ABS = 1e-5  # of what is a difference of larger numbers, such as the mean of rewards of both signs
# A first step's metrics are left out: where a policy is still its own reference, round-off decides which of two rewards
# is larger.
FIRST = ("step", "loss", "grad_norm")


def compare(expected: Iterable[Line], found: Iterable[Line], how: str, rel: float = REL, abs: float = ABS) -> float:
    """The largest difference of two runs, as a share. Raises NotMet for one that round-off doesn't explain, or another
    metric; with `rel` 0 for any at all. `how` says what the second run did otherwise."""
    expected, found = list(expected), list(found)
    if [line["step"] for line in expected] != [line["step"] for line in found]:
        steps = [", ".join(str(line["step"]) for line in lines) or "none" for lines in (expected, found)]
        raise NotMet(f"{how}: steps {steps[1]} are logged, not {steps[0]}")
    worst = 0.0
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one.keys() != other.keys():
            names = ", ".join(sorted(one.keys() ^ other.keys()))
            raise NotMet(f"{how}: step {one['step']} logs {names} in one of the two runs alone")
        for name in one:
            if rel and number == 0 and name not in FIRST:
                continue
            worst = max(worst, _apart(one[name], other[name], f"{how}: at step {one['step']} {name}", rel, abs))
    return worst


def _apart(expected: Any, found: Any, what: str, rel: float, abs: float) -> float:
    if expected == found or (expected != expected and found != found):  # or both are NaN
        return 0.0
    if not all(isinstance(value, int | float) for value in (expected, found)):
        raise NotMet(f"{what} is {found!r} instead of {expected!r}")
    apart = math.fabs(found - expected)
    share = apart / max(math.fabs(expected), math.fabs(found), abs / rel if rel else 0)
    if rel == 0 or not math.isclose(expected, found, rel_tol=rel, abs_tol=abs):
        allowed = f"{rel:.0e} of it or {abs:.0e} allowed" if rel else "the same bits expected"
        raise NotMet(f"{what} is {found:.8g} instead of {expected:.8g} ({share:.1e} of it apart; {allowed})")
    return share
