"""The surface of an installed package: its methods, backends and diagnostics."""

from __future__ import annotations

from typing import Any

from ft_host.config import RunConfig
from ft_host.config.deprecated import deprecations_of
from ft_host.config.fields import fields_of
from ft_host.config.rollout import RolloutConfig
from ft_host.diagnostics.collect import HOST, own_diagnostics, rules_of
from ft_host.diagnostics.rule import Rule
from ft_host.errors import PluginBroken, PluginNotFound
from ft_host.registry import backend_config_class, config_class, diagnostics_config_class, load
from ft_host.registry.catalog import PluginInfo, catalog
from ft_host.registry.metadata import normalise
from ft_host.surface.shapes import FORMAT, deprecations, fields, hooks, rules
from ft_host.types import ModelSpec
from ft_host.util.imports import cause
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
        "deprecations": own_deprecations(config),
    } | kept(info, config)


def kept(info: PluginInfo, config: type[RunConfig]) -> dict[str, Any]:
    """What a checkpoint has of the method's own, and what is written at the end, of a run with the defaults."""
    specs = models_of(info, config)
    policy = specs.get("policy")
    return {
        "checkpoint": {
            "state": sorted(config.state_keys),
            "models": sorted(name for name, spec in specs.items() if spec.trained or spec.sync_steps),
        },
        "export": {"model": ["sequence classifier" if policy and policy.head == "reward" else "language model"]},
    }


def models_of(info: PluginInfo, config: type[RunConfig]) -> dict[str, ModelSpec]:
    """Return what `ft_models` says of a run with the defaults. Raises PluginBroken where it raises."""
    hook = vars(load(info)).get("ft_models")
    if hook is None:
        return {}
    given = {name: field.example for name, field in fields_of(config).items() if field.required}
    try:
        return hook(config=config(**given)) or {}
    except Exception as error:
        raise PluginBroken(f"{info.name}: ft_models, of a run with the defaults: {cause(error)}") from error


def own_deprecations(config: type) -> list[dict[str, Any]]:
    """Return what a config class announces, without what it inherits from the host's."""
    bases = [base for base in config.__mro__ if base.__module__.partition(".")[0] == "ft_host"]
    of_host = {each for base in bases for each in vars(base).get("deprecated", ())}
    return deprecations(each for each in deprecations_of(config) if each not in of_host)


def backend(info: PluginInfo) -> dict[str, Any]:
    config = backend_config_class(info)
    return {
        "fields": {} if config is None else fields(config),
        "hooks": hooks(load(info)),
        "deprecations": [] if config is None else own_deprecations(config),
    }


def diagnostics(info: PluginInfo) -> dict[str, Any]:
    config = diagnostics_config_class(info)
    return {
        "fields": {} if config is None else fields(config),
        "hooks": hooks(load(info)),
        "rules": rules(own_rules([info])),
        "deprecations": [] if config is None else own_deprecations(config),
    }


def own_rules(infos: list[PluginInfo]) -> list[Rule]:
    """Return the rules of these diagnostics, without the host's. Raises PluginBroken where they can't be read."""
    owned, problems = rules_of(infos)
    if problems:
        raise PluginBroken(problems[0])
    return [rule for rule, owner in owned if owner != HOST]
