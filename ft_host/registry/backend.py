"""The generation backend of a run, and its own fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ft_host import registry
from ft_host.config.fields import fields_of
from ft_host.config.resolve import python_values, refuse
from ft_host.config.rollout import RolloutConfig
from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def backend_of(config: RunConfig) -> tuple[registry.PluginInfo | None, Any]:
    """Return the backend of a run and an object of its config class; None for each that doesn't exist.

    Imports the module of that class and no other. Raises ConfigError for invalid fields, and what `registry.find`
    raises.
    """
    if not config.eval_reward and not isinstance(config, RolloutConfig):
        if config.backend_config:
            raise ConfigError("backend_config: has no effect on a run that generates nothing; it has no eval_reward")
        return None, None
    info = registry.find("backend", config.backend)
    settings = settings_of(info, config.backend_config)
    if settings is not None:
        settings.check()
    return info, settings


def settings_of(info: registry.PluginInfo, fields: dict[str, Any]) -> Any:
    """Return an object of the backend's config class with these fields, not yet checked together; None if it has no
    such class. Raises ConfigError for a field that it doesn't have, and a value that doesn't fit."""
    own = registry.backend_config_class(info)
    if own is None:
        if fields:
            raise ConfigError(f"backend_config: the backend {info.name} has no fields of its own; leave it out")
        return None
    values, problems = python_values(fields, fields_of(own))
    refuse([f"backend_config: {problem}" for problem in problems])
    return own(**values)
