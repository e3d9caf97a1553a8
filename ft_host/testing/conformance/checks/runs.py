"""Whole runs: what must not change their numbers."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
