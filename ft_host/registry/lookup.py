"""From a name to one plugin and its module. Only this module imports plugins."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
import warnings
from types import ModuleType

from ft_host.config import FORMATS, RunConfig
from ft_host.errors import PluginBroken, PluginNotFound, UsageError
from ft_host.registry.catalog import CONFIGS, GROUPS, HOST, PluginInfo, catalog
from ft_host.registry.local import LOCAL, is_file, local_plugin, make_importable
from ft_host.registry.metadata import normalise
from ft_host.util.text import closest, nearest


class FtExperimentalWarning(FutureWarning):
    """The method is experimental. A FutureWarning, since Python shows those to users of a library too."""


def find(kind: str, name: str) -> PluginInfo:
    """Return the installed plugin called `name`: "sft", or "ft-sft:sft" where several distributions offer it.

    A method may also be a Python file ("./my_method.py"). Imports nothing. Raises PluginNotFound with the names of
    installed plugins, PluginBroken for a plugin that can't be used, UsageError for a name that several distributions
    offer.
    """
    if kind in LOCAL and is_file(name):
        return local_plugin(kind, name)
    distribution, _, bare = name.rpartition(":")
    named = [info for info in catalog() if (info.kind, info.name) == (kind, bare)]
    if distribution:
        named = [info for info in named if normalise(info.distribution) == normalise(distribution)]
    usable = [info for info in named if info.state != "blocked"]
    if not usable:
        raise PluginNotFound(_not_found(kind, name, bare, named))
    owners = {info.distribution for info in usable}
    if len(owners) > 1:
        offers = [f"  {reference(info)}  ({label(info)}, {info.location})" for info in usable]
        raise UsageError(
            f"the {kind} {bare!r} is offered by {len(usable)} distributions; choose one:\n" + "\n".join(offers)
        )
    _refuse_unusable(usable[0])
    return usable[0]


def load(info: PluginInfo) -> ModuleType:
    """Import the module of one plugin. Raises PluginBroken, which names distribution, version, file and cause."""
    _refuse_unusable(info)
    if not info.distribution:
        make_importable(info)
    return _import(info, _module_of(info.value), f"the {info.kind} {info.name!r}")


def config_class(method: str | PluginInfo) -> type[RunConfig]:
    """Return the config class of a method: the entry point of the method's name in the group ft_host.configs.

    Imports only the config's module, which must not import torch. For a local file it is the attribute `Config`, so the
    file itself is imported. Raises what `find` and `load` raise, and PluginBroken where it isn't a dataclass that
    extends RunConfig.
    """
    info = find("method", method) if isinstance(method, str) else method
    _refuse_unusable(info)
    if not info.distribution:
        cls = vars(load(info)).get("Config")
        value = f"{info.value}:Config"
        if cls is None:
            raise PluginBroken(
                f"{label(info)}: has no attribute Config; a method in a file needs a config class of this name, "
                "for instance `from ft_sft.config import SFTConfig as Config`"
            )
    else:
        value, cls = info.config, _config_of(info)
    if not (isinstance(cls, type) and issubclass(cls, RunConfig)):
        raise PluginBroken(f"{label(info)}: expected {value} to extend ft_host.config.RunConfig, found {cls!r}")
    if cls is not RunConfig and "__dataclass_fields__" not in vars(cls):
        raise PluginBroken(
            f"{label(info)}: {value} is not decorated with @dataclass(kw_only=True), so its fields would be ignored"
        )
    odd = [format for format in cls.formats if format not in FORMATS]
    if odd:
        raise PluginBroken(
            f"{label(info)}: {value}.formats has {odd[0]!r}{nearest(odd[0], FORMATS)}; expected formats among "
            + ", ".join(FORMATS)
        )
    return cls


def backend_config_class(info: PluginInfo) -> type | None:
    """Return the class of a backend's own fields: the entry point of its name in the group ft_host.configs, or None.

    Imports only the class's module. Raises PluginBroken where it isn't a dataclass with a method `check`.
    """
    _refuse_unusable(info)
    return _own_config(info, _config_of(info)) if info.config else None


def diagnostics_config_class(info: PluginInfo) -> type | None:
    """The class of the own fields of diagnostics, in the same way; of a local file it is its attribute `Config`, so the
    file itself is imported."""
    if info.distribution:
        return backend_config_class(info)
    found = vars(load(info)).get("Config")
    return None if found is None else _own_config(info, found)


def _own_config(info: PluginInfo, found: object) -> type:
    what = info.config or f"{info.value}:Config"
    if not (isinstance(found, type) and "__dataclass_fields__" in vars(found)):
        raise PluginBroken(f"{label(info)}: {what} is not a class decorated with @dataclass(kw_only=True)")
    if not any("check" in vars(base) for base in found.__mro__):
        raise PluginBroken(
            f"{label(info)}: {what} has no method check, which must refuse fields that contradict each other"
        )
    return found


def _config_of(info: PluginInfo) -> object:
    value = _import(info, _module_of(info.config), f"the config of the {info.kind} {info.name!r}")
    if ":" not in info.config:
        classes = _configs_in(value, info.name)
        if len(classes) == 1:
            return classes[0]
        names = f": {', '.join(each.__name__ for each in classes)}" if classes else ""
        raise PluginBroken(
            f"{label(info)} ({info.location}): {info.config} has {len(classes)} classes that extend RunConfig{names}; "
            f"expected one, or one called Config or like the method {info.name!r} (or an entry point in "
            f"{CONFIGS}: {info.name} = {info.config}:Class)"
        )
    for part in info.config.partition(":")[2].partition("[")[0].strip().split("."):
        if part not in vars(value):
            raise PluginBroken(f"{label(info)} ({info.location}): {info.config} does not exist: no {part!r}")
        value = vars(value)[part]
    return value


def _configs_in(module: ModuleType, method: str) -> list[type[RunConfig]]:
    """The classes of a module that may be a method's config: one, where it can be told."""
    named = vars(module).get("Config")
    if isinstance(named, type) and issubclass(named, RunConfig):
        return [named]
    own = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, RunConfig) and each.__module__ == module.__name__
    ]
    wanted = re.sub(r"[^a-z0-9]", "", method.lower()) + "config"
    fitting = [each for each in own if each.__name__.lower().replace("_", "") == wanted]
    return fitting if len(fitting) == 1 else own


def method_of(config: type[RunConfig]) -> PluginInfo:
    """Return the method of a config class: the one whose entry point names it, or the local file that defines it.

    For a class that extends a method's config, returns the method of its nearest base. Imports nothing. Raises
    PluginNotFound where there is none, UsageError where several methods have this config, and what `find` raises.
    """
    methods = [info for info in catalog() if info.kind == "method"]
    for base in config.__mro__:
        named = [info for info in methods if _imported(info) is base]
        if len(named) > 1:
            names = ", ".join(reference(info) for info in named)
            raise UsageError(f"{base.__name__} is the config of several methods: {names}; pass the name of one")
        if named:
            _refuse_unusable(named[0])
            return named[0]
        defined = vars(sys.modules[base.__module__])
        if base.__module__ != "__main__" and defined.get("Config") is base and "ft_prepare" in defined:
            return local_plugin("method", defined["__file__"])
    configs = ", ".join(f"{info.name} ({info.config})" for info in methods) or "none"
    raise PluginNotFound(
        f"{config.__module__}:{config.__qualname__} is neither the config of an installed method nor the `Config` of "
        f"a file with a method\ninstalled methods and their configs: {configs}"
    )


def methods_for(format: str) -> list[str]:
    """The names of the installed methods whose config says that they take rows of a format, one of `FORMATS`.

    Imports the configs of all methods, so it is for messages about rows that can't be used. One that can't be imported
    takes none: a broken neighbour is another matter.
    """
    found = []
    for info in catalog():
        if info.kind != "method" or info.state in ("blocked", "incompatible", "broken"):
            continue
        try:
            taken = config_class(info).formats
        except PluginBroken:
            continue
        if format in taken:
            found.append(info.name)
    return list(dict.fromkeys(found))


def label(info: PluginInfo) -> str:
    """Return the name of a plugin for messages: "ft-sft 0.1.0", or the path of a local file."""
    return f"{info.distribution} {info.version}".strip() if info.distribution else info.location


def reference(info: PluginInfo) -> str:
    """Return the name by which `find` always returns this plugin: "ft-sft:sft", or the path of a file."""
    return f"{info.distribution}:{info.name}" if info.distribution else info.location


def warn_if_experimental(info: PluginInfo) -> None:
    """Warn that the method may change. Called once, when a run begins. Who has it in a file knows that."""
    if info.stability == "experimental" and info.distribution:
        warnings.warn(
            f"{label(info)}: the {info.kind} {info.name!r} is experimental, its fields, defaults and metrics may "
            "change in any release",
            FtExperimentalWarning,
            stacklevel=2,
        )


# ---------------------------------------------------------------- refusals


def _refuse_unusable(info: PluginInfo) -> None:
    if info.state == "blocked":
        raise PluginNotFound(f"{label(info)}: the {info.kind} {info.name!r} is {info.problem}")
    if info.state == "incompatible":
        raise PluginBroken(
            f"{label(info)} ({info.location}): the {info.kind} {info.name!r} {info.problem}; "
            f"install another version of {info.distribution} or of {HOST}"
        )
    if info.state == "broken":
        raise PluginBroken(f"{label(info)} ({info.location}): the {info.kind} {info.name!r} {info.problem}")


def _not_found(kind: str, name: str, bare: str, blocked: list[PluginInfo]) -> str:
    """Return a message with what is installed. It never suggests packages to install: a guessed name may be anybody's
    package.
    """
    if blocked:
        return "\n".join(f"no {kind} {name!r}: {label(info)} offers it and is {info.problem}" for info in blocked)
    installed = [info for info in catalog() if info.kind == kind and info.state != "blocked"]
    lines = [f"no {kind} {name!r} is installed"]
    guess = closest(bare, [info.name for info in installed])
    same = [info for info in installed if info.name == bare]
    elsewhere = [info for info in catalog() if info.name == bare and info.kind in GROUPS and info.kind != kind]
    if same:
        lines[0] += f"; did you mean {reference(same[0])!r}?"
    elif guess:
        lines[0] += f"; did you mean {guess!r}?"
    elif elsewhere:
        lines[0] += f"; {bare!r} is a {elsewhere[0].kind} of {label(elsewhere[0])}"
    names = [f"{info.name} ({label(info)}{'' if info.state == 'ok' else ', ' + info.state})" for info in installed]
    plural = {"method": "methods", "backend": "backends", "diagnostics": "diagnostics"}[kind]
    lines.append(f"installed {plural}: {', '.join(names) or 'none'}")
    if not any(normalise(info.distribution) == HOST for info in catalog()):
        lines.append(f"{HOST} is not installed, so its built-in plugins aren't found: pip install -e .")
    return "\n".join(lines)


# ---------------------------------------------------------------- imports


def _imported(info: PluginInfo) -> object | None:
    """Return the object of an entry point, if its module is already imported."""
    module = sys.modules.get(_module_of(info.config))
    if module is None:
        return None
    if ":" not in info.config:
        classes = _configs_in(module, info.name)
        return classes[0] if len(classes) == 1 else None
    return vars(module).get(info.config.partition(":")[2].partition("[")[0].strip())


def _module_of(value: str) -> str:
    return value.partition(":")[0].partition("[")[0].strip()


def _import(info: PluginInfo, module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as err:  # SystemExit: a plugin that exits must not end the run silently
        place = f" ({info.location})" if info.distribution else ""
        raise PluginBroken(f"{label(info)}{place}: {what} failed to import: {_cause(err)}") from err


def _cause(err: BaseException) -> str:
    """Return the error in one line, with the file and line that raised it."""
    text = str(err).strip().splitlines()
    message = f"{type(err).__name__}: {text[0]}" if text else type(err).__name__
    if isinstance(err, SyntaxError):
        return f"{message} ({err.filename}, line {err.lineno})"
    frames = traceback.extract_tb(err.__traceback__)[2:]  # without our frame and import_module's
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
    return f"{message} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else message
