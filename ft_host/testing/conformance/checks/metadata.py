"""What can be seen without importing a package: names, entry points, versions, licence, README."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
