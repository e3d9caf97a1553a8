"""What a method's config class says of its metrics. Imports no torch."""

from __future__ import annotations

from typing import Any

from ft_host.config.rollout import RolloutConfig
from ft_host.config.run import RunConfig
from ft_host.errors import PluginBroken
from ft_host.util.text import nearest

DIRECTIONS = ("lower", "higher", "neither")


def declared_facts(config_class: type[RunConfig]) -> dict[str, Any]:
    """Return what a method's config class says of its metrics, as facts of a run: which way they are better and, with
    rollouts, which one is the reward. Raises PluginBroken for a direction that is none.
    """
    facts: dict[str, Any] = {}
    for name, way in config_class.metric_directions.items():
        if way not in DIRECTIONS:
            raise PluginBroken(
                f"{config_class.__module__}.{config_class.__qualname__}: metric_directions: {name}: found {way!r}, "
                f"expected {', '.join(DIRECTIONS)}{nearest(str(way), DIRECTIONS) or ''}"
            )
    if config_class.metric_directions:
        facts["plan/metric_directions"] = dict(config_class.metric_directions)
    if issubclass(config_class, RolloutConfig):
        facts["plan/reward_metric"] = config_class.reward_metric
        facts["plan/no_signal_metric"] = config_class.no_signal_metric
    return {name: value for name, value in facts.items() if value is not None}
