"""Sinks are guarded: one that raises an error is reported once, by plugin and name, and left out. It ends no run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ft_host.contract.blame import named

if TYPE_CHECKING:
    from pluggy import HookImpl, PluginManager

SINKS = ("ft_start", "ft_log", "ft_finding")  # hooks that are told something and give nothing back
TRACKERS = "host Trackers"  # the host's own sink that reaches out of the machine
GUARDED = ("method ", "backend ", "diagnostics ", TRACKERS)


def guard_sinks(plugins: PluginManager, report: Callable[[str], None]) -> None:
    """Guard what the plugins of a run implement of `SINKS`, and its trackers. To be called once all are registered;
    `report` gets the sentence. The host's own diagnostics aren't guarded: an error of theirs is one of the host."""
    left_out: set[str] = set()
    for hook in SINKS:
        for impl in getattr(plugins.hook, hook).get_hookimpls():
            if impl.plugin_name.startswith(GUARDED) and not (impl.wrapper or impl.hookwrapper):
                impl.function = _guarded(impl, hook, left_out, report)


def _guarded(impl: HookImpl, hook: str, left_out: set[str], report: Callable[[str], None]) -> Callable[..., None]:
    """pluggy passes arguments by position, in the order of `impl.argnames`."""
    function = impl.function

    def call(*arguments: Any) -> None:
        if impl.plugin_name in left_out:
            return
        try:
            function(*arguments)
        except Exception as error:  # whatever a sink can raise: the sentence and the run's events have it
            left_out.add(impl.plugin_name)
            report(
                f"{hook} of {named(impl.plugin_name)} raised {type(error).__name__}: {error}; it is left out for the"
                " rest of the run"
            )

    return call
