"""The fields of a run, and how a file, flags and Python become a checked config. Imports no torch."""

from __future__ import annotations

from ft_host.config.deprecated import Deprecated
from ft_host.config.grouped import GroupedRolloutConfig, grouped_plan
from ft_host.config.reference import ReferenceConfig
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.config.run import FORMATS, RunConfig, option
from ft_host.config.usual import Usual

__all__ = [
    "FORMATS",
    "Deprecated",
    "GroupedRolloutConfig",
    "ReferenceConfig",
    "RolloutConfig",
    "RolloutPlan",
    "RunConfig",
    "Usual",
    "grouped_plan",
    "option",
]
