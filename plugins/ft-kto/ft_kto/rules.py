"""What a run of this method recognises by itself. Imports no torch."""

from __future__ import annotations

from ft_host import hookimpl
from ft_host.diagnostics import Rule

RULES: list[Rule] = []


@hookimpl
def ft_rules():
    return RULES
