"""Who is installed, whether it fits, and the plugins of one run. Importing this imports no plugin and nothing heavy."""

from __future__ import annotations

from ft_host.registry.catalog import PluginInfo, catalog
from ft_host.registry.lookup import (
    FtExperimentalWarning,
    config_class,
    find,
    label,
    load,
    reference,
    warn_if_experimental,
)
from ft_host.registry.requirements import check_requirements
from ft_host.registry.session import session, wrapper_chain

__all__ = [
    "FtExperimentalWarning",
    "PluginInfo",
    "catalog",
    "check_requirements",
    "config_class",
    "find",
    "label",
    "load",
    "reference",
    "session",
    "warn_if_experimental",
    "wrapper_chain",
]
