"""Rows: each format that a method says it takes, and those that a user sends by mistake."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
