"""The own fields of a run's diagnostics."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ft_host import registry
from ft_host.config.fields import fields_of
from ft_host.config.resolve import python_values, refuse
from ft_host.errors import ConfigError
from ft_host.util.text import nearest

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def diagnostics_configs(config: RunConfig) -> dict[str, Any]:
    """An object of its config class for each of the diagnostics that a config names and that have fields of their own,
    by name; by "distribution:name" where two have the same name.

    Imports the modules of those classes and no other. Raises ConfigError for fields that can't be used, and for fields
    of what isn't used; and what `registry.find` does.
    """
    infos = [registry.find("diagnostics", name) for name in config.diagnostics]
    names = Counter(info.name for info in infos)
    keys = {registry.reference(info) if names[info.name] > 1 else info.name: info for info in infos}
    given, problems = {}, []
    for name, values in config.diagnostics_config.items():
        key = _key(name, keys, config)
        if key is None:
            known = f"; expected {', '.join(keys)}" if keys else ", and none are chosen"
            near = nearest(name, keys)
            problems.append(f"diagnostics_config: {name} is none of the diagnostics that are chosen{near or known}")
        elif not isinstance(values, dict):
            problems.append(f"diagnostics_config: {name}: found {values!r}, expected {{field: value}}")
        else:
            given[key] = values
    refuse(problems)
    found = {}
    for key, info in keys.items():
        own = registry.diagnostics_config_class(info)
        if own is not None:
            found[key] = _made(own, given.get(key, {}), key)
        elif given.get(key):
            raise ConfigError(f"diagnostics_config: the diagnostics {key} have no fields of their own; leave them out")
    return found


def _key(name: str, keys: dict[str, registry.PluginInfo], config: RunConfig) -> str | None:
    """Which of the diagnostics a name in `diagnostics_config` means: theirs, or what `diagnostics` calls them."""
    if name in keys:
        return name
    by_choice = dict(zip(config.diagnostics, keys, strict=False)) if len(keys) == len(config.diagnostics) else {}
    return by_choice.get(name)


def _made(own: type, values: dict[str, Any], key: str) -> Any:
    found, problems = python_values(values, fields_of(own))
    refuse([f"diagnostics_config: {key}: {problem}" for problem in problems])
    made = own(**found)
    try:
        made.check()
    except ConfigError as error:
        raise ConfigError(f"diagnostics_config: {key}: {error}") from error
    return made
