"""What a run of distill or gkd recognises by itself. Imports no torch."""

from __future__ import annotations

from ft_host import hookimpl

RULES = []


@hookimpl
def ft_rules():
    return RULES
