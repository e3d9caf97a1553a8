"""The rules of online DPO, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_host.testing import rollout_cases
from ft_online_dpo.rules import NAMES

CASES = rollout_cases(NAMES, {"num_generations": 8})
