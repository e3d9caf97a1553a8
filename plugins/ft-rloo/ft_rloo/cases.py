"""The rules of RLOO, each on a run that raises it and on one that only looks like it."""

from __future__ import annotations

from ft_host.diagnostics import Names
from ft_host.testing import rollout_cases

CASES = rollout_cases(Names(letters="RLOO", clip_of_completions=True))
