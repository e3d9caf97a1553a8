"""What a stable tag must have earned beside passing."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
