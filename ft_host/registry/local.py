"""Methods and diagnostics in a Python file, which no distribution offers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import keyword
import os
import sys
from pathlib import Path

from ft_host.errors import PluginNotFound, UsageError
from ft_host.registry.catalog import PluginInfo
from ft_host.util.text import closest

METHOD_HOOKS = ("ft_prepare", "ft_collate", "ft_models", "ft_annotate", "ft_step", "ft_loss", "ft_rollout")
LOCAL = {"method": "a method in a local file", "diagnostics": "diagnostics in a local file"}


def is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name or "/" in name


def local_plugin(kind: str, name: str) -> PluginInfo:
    path = Path(name).expanduser().resolve()
    if not path.is_file() or path.suffix != ".py":
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        guess = closest(path.name, beside)
        hint = f"; did you mean {str(Path(name).parent / guess)!r}?" if guess else ""
        raise PluginNotFound(f"no {kind} {name!r}: there is no Python file {path}{hint}")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise UsageError(f"{name}: {path.stem!r} can't be a module's name; rename the file, for instance my_{kind}.py")
    return PluginInfo(
        kind=kind,
        name=path.stem,
        value=path.stem,
        config=f"{path.stem}:Config" if kind == "method" else "",
        location=str(path),
        summary=LOCAL[kind],
    )


def make_importable(info: PluginInfo) -> None:
    """Put the file's folder at the end of sys.path, so that worker processes find the module by its name too."""
    folder = str(Path(info.location).parent)
    if folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()
    spec = sys.modules[info.value].__spec__ if info.value in sys.modules else importlib.util.find_spec(info.value)
    origin = spec.origin if spec is not None else None
    if origin is None or not Path(origin).exists() or Path(origin).resolve() != Path(info.location):
        raise UsageError(
            f"{info.location}: Python has another module {info.value!r} ({origin or 'built in'}); rename the file"
        )


def kind_of_file(path: str) -> str:
    """What a file is, without importing it: a method where it answers one of a method's hooks, else diagnostics."""
    try:
        tree = ast.parse(Path(path).expanduser().read_bytes())
    except (OSError, SyntaxError):
        return "method"  # `local_plugin` or the import says what is wrong
    wraps = {"wrapper", "hookwrapper"}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in METHOD_HOOKS:
            calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
            if not any(word.arg in wraps for call in calls for word in call.keywords):
                return "method"
    return "diagnostics"
