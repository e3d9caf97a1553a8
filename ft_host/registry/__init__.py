"""Installed plugins, their compatibility, and the plugins of one run. Importing this imports no plugin and nothing
heavy.
"""

from __future__ import annotations

from ft_host.registry.backend import backend_of
from ft_host.registry.catalog import PluginInfo, catalog
from ft_host.registry.diagnostics import diagnostics_configs
from ft_host.registry.lookup import (
    FtExperimentalWarning,
    backend_config_class,
    config_class,
    diagnostics_config_class,
    find,
    label,
    load,
    method_of,
    methods_for,
    reference,
    warn_if_experimental,
)
from ft_host.registry.requirements import check_requirements
from ft_host.registry.session import plugins_named, session, wrappers

__all__ = [
    "FtExperimentalWarning",
    "PluginInfo",
    "backend_config_class",
    "backend_of",
    "catalog",
    "check_requirements",
    "config_class",
    "diagnostics_config_class",
    "diagnostics_configs",
    "find",
    "label",
    "load",
    "method_of",
    "plugins_named",
    "methods_for",
    "reference",
    "session",
    "warn_if_experimental",
    "wrappers",
]
