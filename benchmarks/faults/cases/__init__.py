"""The list: faulty runs and healthy ones, of each family that has what they need. Imports no torch.

Faults are made as people make them: by config, by rows, by a reward function, or by a part that is broken on purpose;
no metric is written by hand. What changed in a case since a threshold was tuned on it, and why, is in the history of
these files.
"""

from __future__ import annotations

from case import Case

from cases import healthy, pairs, parts, rollouts, rows, settings, teachers

KINDS = [*settings.KINDS, *rows.KINDS, *pairs.KINDS, *rollouts.KINDS, *teachers.KINDS, *parts.KINDS]
FAULTS: list[Case] = [case for kind in KINDS for case in kind.cases()]
HEALTHY: list[Case] = [case for kind in healthy.KINDS for case in kind.cases()]
CASES: dict[str, Case] = {case.id: case for case in [*FAULTS, *HEALTHY]}
