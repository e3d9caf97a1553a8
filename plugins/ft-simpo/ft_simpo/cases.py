"""A run that raises each rule of SimPO and CPO, and one that only looks like it. Imports no torch."""

from __future__ import annotations

from ft_host.testing import free_preference_cases

CASES = free_preference_cases("SIMPO", displacement=1, signal=2)
