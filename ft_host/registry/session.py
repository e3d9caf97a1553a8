"""The plugins of one run: its own plugin manager, with exactly the selected plugins."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from types import FunctionType
from typing import Any

import pluggy

from ft_host.contract.blame import HOST, is_host
from ft_host.errors import PluginBroken
from ft_host.hooks import NAME, data, diagnostics, generation, loss
from ft_host.registry import trace
from ft_host.registry.catalog import PluginInfo
from ft_host.registry.lookup import find, label, load, reference
from ft_host.util.text import closest

SPECS = (data, loss, generation, diagnostics)

# Hooks that exactly one plugin of the run implements. Others may wrap them.
OWNERS = {
    "ft_prepare": "method",
    "ft_collate": "method",
    "ft_models": "method",
    "ft_annotate": "method",
    "ft_step": "method",
    "ft_loss": "method",
    "ft_rollout": "method",
    "ft_generate": "backend",
    "ft_engine": "backend",
    "ft_connect": "backend",
    "ft_sync_weights": "backend",
    "ft_score": "backend",
    "ft_serve": "backend",
}
REQUIRED = {"method": ("ft_prepare", "ft_collate", "ft_loss"), "backend": ("ft_generate",), "diagnostics": ()}


def session(
    method: PluginInfo, backend: PluginInfo | None, diagnostics: Sequence[PluginInfo] = (), extra: Iterable[object] = ()
) -> pluggy.PluginManager:
    """Return a new plugin manager with the method, the backend, the diagnostics, and `extra` objects of the host.

    Imports those plugins and no other. Raises PluginBroken where one can't be imported, implements a hook that doesn't
    exist or one with unknown arguments, or lacks a hook that its kind must implement. FT_HOST_TRACE=1 prints each call.
    """
    infos = [method, *([] if backend is None else [backend]), *diagnostics]
    manager = _manager(infos)
    for index, sink in enumerate(extra):
        manager.register(sink, name=f"{HOST} {type(sink).__name__} {index}")
    manager.check_pending()
    if trace.wanted():
        trace.install(manager)
    return manager


def alone(info: PluginInfo) -> pluggy.PluginManager:
    """Return a plugin manager with one plugin, for what is asked of it outside of a run. Raises what `session`
    raises."""
    return _manager([info])


def validate(info: PluginInfo) -> None:
    """Import one plugin and check its hooks as a run would. Raises what `session` raises."""
    _manager([info])


def wrappers(manager: pluggy.PluginManager) -> list[dict[str, Any]]:
    """Return who wraps which hook, outermost first: [{"hook": "ft_loss", "plugins": ["diagnostics ft-x:guard"]}]."""
    chain = []
    for spec in _spec_names():
        impls = reversed(getattr(manager.hook, spec).get_hookimpls())  # pluggy calls the last one first
        names = [impl.plugin_name for impl in impls if _wraps(impl) and not is_host(impl.plugin_name)]
        if names:
            chain.append({"hook": spec, "plugins": names})
    return chain


@functools.lru_cache(maxsize=4)
def plugins_named(method: str, diagnostics: tuple[str, ...] = ()) -> pluggy.PluginManager:
    """Return the named method and diagnostics as one plugin manager, for any process.

    A plugin manager can't be sent to a worker process; names can, as `reference` returns them. Cached per process.
    """
    infos = [find("diagnostics", name) for name in diagnostics]
    return session(find("method", method), None, infos)


def plugin_name(info: PluginInfo) -> str:
    """Return a plugin's name in a manager, in traces and in the chain of wrappers: "method ft-sft:sft"."""
    return f"{info.kind} {reference(info)}"


def _manager(infos: list[PluginInfo]) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(NAME)
    for spec in SPECS:
        manager.add_hookspecs(spec)
    serving: dict[str, list[PluginInfo]] = {}  # registered name -> the plugins in the module
    for info in infos:
        module = load(info)
        if manager.is_registered(module):  # one module may hold a method and its diagnostics
            serving[manager.get_name(module)].append(info)
            continue
        name = plugin_name(info)
        serving[name] = [info]
        try:
            manager.register(module, name=name)
        except pluggy.PluginValidationError as err:
            detail = " ".join(str(err).split("\n", 1)[-1].split())
            raise PluginBroken(f"{label(info)} ({info.location}): {detail}") from err
        _refuse_unknown_hooks(manager, module, info)
        _refuse_unmarked_hooks(manager, module, info)
    _check_owners(manager, serving)
    return manager


def _refuse_unknown_hooks(manager: pluggy.PluginManager, module, info: PluginInfo) -> None:
    for caller in manager.get_hookcallers(module) or []:
        if caller.has_spec() or all(impl.optionalhook for impl in caller.get_hookimpls()):
            continue
        guess = closest(caller.name, _spec_names())
        raise PluginBroken(
            f"{label(info)} ({info.location}): implements {caller.name!r}, which is not a hook of this host"
            + (f"; did you mean {guess!r}?" if guess else "")
            + f"\nhooks: {', '.join(_spec_names())}"
        )


def _refuse_unmarked_hooks(manager: pluggy.PluginManager, module, info: PluginInfo) -> None:
    implemented = {caller.name for caller in manager.get_hookcallers(module) or []}
    for name in _spec_names():
        if name not in implemented and isinstance(vars(module).get(name), FunctionType):
            raise PluginBroken(
                f"{label(info)} ({info.location}): has a function {name} that would never be called: "
                "it isn't decorated with @ft_host.hookimpl"
            )


def _check_owners(manager: pluggy.PluginManager, serving: dict[str, list[PluginInfo]]) -> None:
    """Check that each hook with one owner is implemented once, by a plugin of that kind; others may only wrap it."""
    answering = {}
    for hook, kind in OWNERS.items():
        impls = getattr(manager.hook, hook).get_hookimpls()
        names = answering[hook] = [impl.plugin_name for impl in impls if not _wraps(impl)]
        for name in names:
            info = serving[name][0]
            if kind not in [served.kind for served in serving[name]]:
                raise PluginBroken(
                    f"{label(info)} ({info.location}): the {info.kind} {info.name!r} implements {hook}, which only a "
                    f"{kind} may; others wrap it, with @hookimpl(wrapper=True)"
                )
        if len(names) > 1:  # one plugin can do this by hookimpl(specname=...)
            raise PluginBroken(f"{hook} is implemented {len(names)} times, by {', '.join(names)}; expected once")
    for name, infos in serving.items():
        for info in infos:
            missing = [hook for hook in REQUIRED[info.kind] if name not in answering[hook]]
            if missing:
                raise PluginBroken(
                    f"{label(info)} ({info.location}): the {info.kind} {info.name!r} doesn't implement "
                    f"{', '.join(missing)}; a {info.kind} implements {', '.join(REQUIRED[info.kind])}"
                )


def _wraps(impl: pluggy.HookImpl) -> bool:
    return impl.wrapper or impl.hookwrapper


def _spec_names() -> list[str]:
    return [name for spec in SPECS for name in vars(spec) if name.startswith("ft_")]
