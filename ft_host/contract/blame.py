"""Names the plugin whose hook returned something invalid or raised an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ft_host.errors import FtHostError, HookError

if TYPE_CHECKING:
    from pluggy import PluginManager

SHOWN = 80  # characters of a value


def owner_of(plugins: PluginManager, hook: str) -> str:
    """Return who implements a hook and who wraps it: "ft_loss of the method 'sft' (ft-sft 0.3.0)"."""
    impls = list(reversed(getattr(plugins.hook, hook).get_hookimpls()))  # the outermost first
    answering = [impl.plugin_name for impl in impls if not (impl.wrapper or impl.hookwrapper)]
    wrapping = [impl.plugin_name for impl in impls if impl.wrapper or impl.hookwrapper]
    text = f"{hook} of {named(answering[0])}" if answering else hook
    return text + (f", wrapped by {', '.join(named(name) for name in wrapping)}" if wrapping else "")


def named(plugin: str) -> str:
    """ "method ft-sft:sft", as the registry calls it within a run, for a person."""
    kind, _, reference = plugin.partition(" ")
    distribution, _, name = reference.rpartition(":")
    if kind not in ("method", "backend", "diagnostics") or not reference:
        return plugin
    if not distribution:
        return f"the {kind} {reference}"  # a file
    try:
        return f"the {kind} {name!r} ({distribution} {version(distribution)})"
    except PackageNotFoundError:
        return f"the {kind} {name!r} ({distribution})"


def shown(value: Any) -> str:
    """Describe an unexpected value: its type, with its shape or the beginning of its text."""
    kind = type(value)
    if value is None:
        return "None"
    if kind.__module__.partition(".")[0] in ("torch", "numpy") and "shape" in dir(kind):
        return f"a {kind.__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return f"{kind.__name__} {text if len(text) <= SHOWN else text[:SHOWN] + '...'}"


@contextlib.contextmanager
def blamed(plugins: PluginManager, hook: str) -> Iterator[None]:
    """Add a note with the hook's owner to an error that isn't meant for users."""
    try:
        yield
    except FtHostError:
        raise
    except Exception as error:
        error.add_note(f"in {owner_of(plugins, hook)}")
        raise


def fault(plugins: PluginManager, hook: str, what: str) -> HookError:
    """Return the error for what a hook returned. `what`: what it returned, and what was expected."""
    return HookError(f"{owner_of(plugins, hook)} {what}")
