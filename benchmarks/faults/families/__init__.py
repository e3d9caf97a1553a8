"""The families of the benchmark: material of one task, and the runs that learn it.

Each is a module with

TUNED           whether thresholds may be tuned on it; what is published is from the others
BASE            {method: fields} of a run that learns, with "@data/NAME", "@model/NAME" and "@rewards:NAME"
REWARDS         the file of the functions that "@rewards:NAME" names
RIGHT, NEAR     the rewards that are right for the task: all or nothing, and by degrees
missing()       why it can't be made here, or None
make()          writes data and models to a folder, unless they are there

Imports no torch.
"""

from __future__ import annotations

from types import ModuleType

from families import arithmetic, dates, gsm8k, lookup, transduction

FAMILIES: dict[str, ModuleType] = {
    "arithmetic": arithmetic,
    "transduction": transduction,
    "lookup": lookup,
    "gsm8k": gsm8k,
    "dates": dates,
}
