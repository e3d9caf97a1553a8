"""Functions that a config names: `file.py:function` (relative to the working directory) or
`package.module:function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ft_host.errors import ConfigError
from ft_host.util.text import QUOTED, nearest

EXAMPLE = "file.py:function or package.module:function"


def load_function(spec: str, option: str, modules: dict[str, ModuleType] | None = None) -> Callable[..., Any]:
    """Import the function. `option`: the field that errors name; `modules`: a cache of modules already read.

    Raises ConfigError for what can't be found or imported, with the nearest known name.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"{option}: {spec!r} is not of the form {EXAMPLE}")
    modules = {} if modules is None else modules
    if where not in modules:
        modules[where] = _load_file(where, option) if where.endswith(".py") else _load_module(where, option)
    module = modules[where]
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in functions:
        # functions defined in the module itself, not imported ones
        own = [
            key for key, value in functions.items() if inspect.isroutine(value) and inspect.getmodule(value) is module
        ]
        what = "is not a function" if name in vars(module) else "is not defined"
        raise ConfigError(
            f"{option}: {where} was read, but {name!r} {what}" + nearest(name, own, QUOTED, "functions in it")
        )
    return functions[name]


def _load_file(path: str, option: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        nearby = [str(other) for other in Path(path).parent.glob("*.py")]
        raise ConfigError(f"{option}: there is no file {path}" + nearest(path, nearby, QUOTED, "files there"))
    name = f"_ft_host_file_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{option}: {path} can't be imported: {cause(error)}") from error
    return module


def _load_module(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        hint = f" (for a file, add .py: {name}.py:…)" if Path(f"{name}.py").is_file() else ""
        raise ConfigError(f"{option}: module {name!r} can't be imported: {cause(error)}{hint}") from error


# ---------------------------------------------------------------- hints


def cause(error: BaseException, file: str | None = None) -> str:
    """Return the error on one line, with its innermost place in `file`, or else outside this package and the import
    system.
    """
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parent), importlib.__file__, "<")
    inner = [frame for frame in frames if not frame.filename.startswith(ours)]
    inner = [frame for frame in inner if frame.filename == file] or inner
    return f"{text} ({inner[-1].filename}, line {inner[-1].lineno})" if inner else text
