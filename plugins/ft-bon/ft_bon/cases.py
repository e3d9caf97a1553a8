"""The rules of best of n, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_bon.rules import NAMES, NO_KL
from ft_host.testing import rollout_cases

CASES = {code: runs for code, runs in rollout_cases(NAMES).items() if code != NO_KL}
