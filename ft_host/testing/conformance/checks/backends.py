"""What samples: its log-probs, its weights, its noise, its limits."""

from __future__ import annotations

from ft_host.testing.conformance.check import Check

CHECKS: list[Check] = []
