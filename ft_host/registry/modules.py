"""Finds the module of an entry point without importing it or its parent packages."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec

VALUE = re.compile(r"(?P<module>[^\W\d]\w*(?:\.[^\W\d]\w*)*)\s*(?::\s*(?P<attr>[^\W\d][\w.]*)\s*)?(?:\[.*\])?")


def locate(value: str, *, attr: bool) -> tuple[str | None, str | None]:
    """Return (file, problem) of an entry point's value: a module, or with `attr` an object in a module."""
    expected = "package.module:Class" if attr else "package.module"
    match = VALUE.fullmatch(value)
    if not value:
        return None, f"bad entry point: it is empty, expected {expected}"
    if match is None or bool(match["attr"]) != attr:
        return None, f"bad entry point: {value!r}, expected {expected}"
    path, name, origin = None, "", None
    for part in match["module"].split("."):
        parent, name = name, f"{name}.{part}" if name else part
        if parent and path is None:
            return None, f"bad entry point: {value!r}, but {parent} is a module, not a package ({origin})"
        spec = _find_spec(name, path)
        if spec is None:
            return None, f"bad entry point: {value!r}, but there is no module {name}"
        path = spec.submodule_search_locations
        origin = spec.origin or next(iter(path or ()), None)
    return origin, None


def _find_spec(name: str, path) -> ModuleSpec | None:
    """Return the spec of a module. `importlib.util.find_spec` would import its parent packages."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None


def beside(value: str, name: str) -> str:
    """Return the module `name` next to an entry point's module: "ft_sft.config" for "ft_sft.method", "" where there is
    none.

    If the entry point's module is a package, the module is looked for inside it. Imports nothing.
    """
    match = VALUE.fullmatch(value)
    if match is None:
        return ""
    module = f"{match['module'].rpartition('.')[0] or match['module']}.{name}"
    return module if module != match["module"] and locate(module, attr=False)[1] is None else ""
