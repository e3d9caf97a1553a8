"""Config resolution: from files, flags and Python to a checked config, and the texts that are made from its fields."""

from __future__ import annotations

from ft_host.settings.backend import backend_of
from ft_host.settings.paths import check_output
from ft_host.settings.resolve import RESUMABLE, Resolved, check, resolve, resolve_resumed

__all__ = ["RESUMABLE", "Resolved", "backend_of", "check", "check_output", "resolve", "resolve_resumed"]
