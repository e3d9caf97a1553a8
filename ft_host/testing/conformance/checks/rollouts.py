"""Methods that make their rows in rollouts."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
