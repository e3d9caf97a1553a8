"""Names the plugin whose hook returned something invalid or raised an error."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.contract.names import UnknownName
from ft_host.errors import FtHostError, HookError
from ft_host.util.memory import ran_out
from ft_host.util.ranks import lost_another

if TYPE_CHECKING:
    from pluggy import PluginManager

SHOWN = 80  # characters of a value
HOST = "host"  # what the names of the host's own plugins in a manager begin with


def is_host(plugin: str) -> bool:
    """Return whether a plugin of a manager, by its name there, is the host's own."""
    return plugin.partition(" ")[0] == HOST


def owner_of(plugins: PluginManager, hook: str) -> str:
    """Return who implements a hook and who wraps it: "ft_loss of the method 'sft' (ft-sft 0.3.0)"."""
    impls = list(reversed(getattr(plugins.hook, hook).get_hookimpls()))  # the outermost first
    answering = [impl.plugin_name for impl in impls if not (impl.wrapper or impl.hookwrapper)]
    wrapping = [impl.plugin_name for impl in impls if impl.wrapper or impl.hookwrapper]
    wrapping = [name for name in wrapping if not is_host(name)]
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
def blamed(plugins: PluginManager, hook: str, plugin: str | None = None) -> Iterator[None]:
    """Raises HookError, with the plugin and the line, for an error that isn't meant for people. Where memory ran out or
    another process of the run has ended it is no mistake of the hook: that error stays as it is. `plugin`: the only one
    that is called, where several have the hook."""
    try:
        yield
    except FtHostError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit: a plugin that exits must not end the run silently
        if ran_out(error) or lost_another(error):
            raise
        what = str(error) if isinstance(error, UnknownName) else f"{type(error).__name__}: {error}".removesuffix(": ")
        owner = owner_of(plugins, hook) if plugin is None else f"{hook} of {named(plugin)}"
        place = _place(plugins, hook, error)
        facts = {"watch/failed_hook": owner, "watch/failed_place": place}
        raise HookError(f"{owner} failed: {what} ({place})", facts=facts) from error


def _place(plugins: PluginManager, hook: str, error: BaseException) -> str:
    """File and line of the deepest frame that is in the folder of a plugin of this hook, else of the deepest."""
    functions = [each.function for each in getattr(plugins.hook, hook).get_hookimpls()]
    folders = {Path(inspect.getfile(function)).parent for function in functions}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).parent in folders]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def fault(plugins: PluginManager, hook: str, what: str) -> HookError:
    """Return the error for what a hook returned. `what`: what it returned, and what was expected."""
    owner = owner_of(plugins, hook)
    return HookError(f"{owner} {what}", facts={"watch/failed_hook": owner, "watch/failed_place": ""})
