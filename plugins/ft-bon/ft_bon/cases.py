"""The rules of best of n, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_bon.rules import NAMES
from ft_host.testing import rollout_cases

CASES = rollout_cases(NAMES)
