"""What importing a package does, and what its hooks look like."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
