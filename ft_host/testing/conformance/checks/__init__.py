"""All checks, by id, in the order in which they are asked: what needs no import first, whole runs last."""

from __future__ import annotations

from ft_host.testing.conformance.check import ABOUT, TIERS, Check
from ft_host.testing.conformance.checks import (
    backends,
    batches,
    data,
    diagnostics,
    effects,
    fields,
    imports,
    learning,
    logged,
    losses,
    maturity,
    metadata,
    prepared,
    promises,
    recorded,
    rollouts,
    runs,
    sampled,
)

CHECKS: dict[str, Check] = {}
for module in (
    metadata,
    imports,
    fields,
    promises,
    data,
    prepared,
    batches,
    losses,
    effects,
    logged,
    rollouts,
    runs,
    learning,
    recorded,
    sampled,
    backends,
    diagnostics,
    maturity,
):
    for check in module.CHECKS:
        assert check.id not in CHECKS and check.about in ABOUT and check.tier in TIERS, check.id
        CHECKS[check.id] = check
