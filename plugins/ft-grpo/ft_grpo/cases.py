"""The rules of GRPO, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_host.diagnostics import Names
from ft_host.testing import rollout_cases

CASES = rollout_cases(Names(letters="GRPO"))
