"""The surface of an installed package: its methods, backends and diagnostics."""

from __future__ import annotations

from typing import Any

from ft_host.config import RunConfig
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import HOST, own_diagnostics, rules_of
from ft_host.diagnostics.rule import Rule
from ft_host.errors import PluginBroken, PluginNotFound
from ft_host.registry import backend_config_class, config_class, diagnostics_config_class, load
from ft_host.registry.catalog import PluginInfo, catalog
from ft_host.registry.metadata import normalise
from ft_host.surface.shapes import FORMAT, fields, hooks, rules
from ft_host.util.text import nearest


def package_surface(distribution: str) -> dict[str, Any]:
    """Return the public surface of an installed distribution, as JSON can hold it. Imports its modules.

    Raises PluginNotFound where none of this name has plugins, and PluginBroken for one that can't be used.
    """
    found = [info for info in catalog() if normalise(info.distribution) == normalise(distribution)]
    if not found:
        names = sorted({info.distribution for info in catalog()})
        raise PluginNotFound(
            f"no installed distribution {distribution!r} has plugins{nearest(distribution, names)}; there are "
            + ", ".join(names)
        )
    first = found[0]
    surface: dict[str, Any] = {
        "format": FORMAT,
        "distribution": first.distribution,
        "version": first.version,
        "stability": first.stability,
        "requires_host": first.requires_host,
    }
    for kind, read in (("method", method), ("backend", backend), ("diagnostics", diagnostics)):
        surface[kind] = {info.name: read(info) for info in found if info.kind == kind and not info.implied}
    return surface


def method(info: PluginInfo) -> dict[str, Any]:
    """Fields beyond the host's, or with another default; what it asks of rows; metrics it declares; hooks; rules."""
    config = config_class(info)
    base = RolloutConfig if issubclass(config, RolloutConfig) else RunConfig
    columns = (
        {"needs": list(config.needs_columns), "reads": list(config.reads_columns)} if base is RolloutConfig else {}
    )
    return {
        "config": f"{config.__module__}.{config.__qualname__}",
        "base": base.__name__,
        "fields": fields(config, beyond=base),
        "formats": sorted(config.formats),
        "columns": columns,
        "metrics": sorted(config.metrics),
        "hooks": hooks(load(info)),
        "rules": rules(own_rules(own_diagnostics(info))),
    }


def backend(info: PluginInfo) -> dict[str, Any]:
    config = backend_config_class(info)
    return {"fields": {} if config is None else fields(config), "hooks": hooks(load(info))}


def diagnostics(info: PluginInfo) -> dict[str, Any]:
    config = diagnostics_config_class(info)
    return {
        "fields": {} if config is None else fields(config),
        "hooks": hooks(load(info)),
        "rules": rules(own_rules([info])),
    }


def own_rules(infos: list[PluginInfo]) -> list[Rule]:
    """Return the rules of these diagnostics, without the host's. Raises PluginBroken where they can't be read."""
    owned, problems = rules_of(infos)
    if problems:
        raise PluginBroken(problems[0])
    return [rule for rule, owner in owned if owner != HOST]
