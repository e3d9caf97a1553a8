"""Which remedies of a rule a run can take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ft_host.config.old_names import warn
from ft_host.config.run import OLD_NAMES
from ft_host.diagnostics.rule import Remedy


def usable(remedies: Iterable[Remedy], config: dict[str, Any]) -> list[Remedy]:
    """The remedies without those whose patch changes nothing, or a field that the run doesn't have. A field that the
    user has locked is not changed: its remedy has no patch. Fields have their names of today."""
    now = [_renamed(remedy, config) for remedy in remedies]
    return [_unlocked(remedy, config) for remedy in now if _changes(remedy.patch, config)]


def _renamed(remedy: Remedy, config: dict[str, Any]) -> Remedy:
    old = {name: OLD_NAMES[name] for name in remedy.patch if name in OLD_NAMES and name not in config}
    for name, new in old.items():
        warn("a remedy's patch", name, new)
    return replace(remedy, patch={old.get(name, name): value for name, value in remedy.patch.items()})


def _unlocked(remedy: Remedy, config: dict[str, Any]) -> Remedy:
    locked = [name for name in remedy.patch if name in config.get("locked_fields", ())]
    if not locked:
        return remedy
    return replace(remedy, why=f"{remedy.why} ({', '.join(locked)} is locked)", patch={})


def _changes(patch: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a patch is none, or one of fields that the run has, to other values."""
    return not patch or (
        all(name in config for name in patch) and any(config[name] != value for name, value in patch.items())
    )
