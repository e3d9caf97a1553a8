"""FT_HOST_TRACE=1: prints the arguments and the result of each hook call, as shapes, on stderr."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pluggy import PluginManager

DEPTH = 3
MANY = 16  # a dataclass with more fields (a config, for instance) is only named
SCALARS = (bool, int, float, str, type(None))


def wanted() -> bool:
    """Return whether FT_HOST_TRACE is set to something other than 0."""
    return os.environ.get("FT_HOST_TRACE", "") not in ("", "0")


def install(manager: PluginManager) -> None:
    """Print a line before and a line after each hook call: before, since the call may never return."""
    started: list[float] = []
    rank = f" rank {os.environ['RANK']}" if "RANK" in os.environ else ""

    def say(text: str) -> None:
        print(f"ft-host trace{rank}: {'  ' * len(started)}{text}", file=sys.stderr, flush=True)

    def before(hook_name, hook_impls, kwargs) -> None:
        shapes = ", ".join(f"{name}={shape(value)}" for name, value in kwargs.items())
        callees = ", ".join(impl.plugin_name for impl in reversed(hook_impls)) or "nobody"
        say(f"{hook_name}({shapes}) by {callees}")
        started.append(time.perf_counter())

    def after(outcome, hook_name, hook_impls, kwargs) -> None:
        seconds = time.perf_counter() - started.pop()
        err = outcome.exception
        result = shape(outcome.get_result()) if err is None else f"raised {type(err).__name__}: {err}"
        say(f"{hook_name} -> {result}  {seconds * 1e3:.1f} ms")

    manager.add_hookcall_monitoring(before, after)


def shape(value: Any, depth: int = DEPTH) -> str:
    """Describe a value by its shape: float32[3, 4] for a tensor, list[8] of its first item, {key: shape}, a type's
    name.
    """
    kind = type(value)
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if _is_array(kind):
        return f"{str(value.dtype).rpartition('.')[2]}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (list, tuple, set, frozenset)):
        if not value or depth <= 0:
            return f"{kind.__name__}[{len(value)}]"
        first = next(iter(value))
        inner = type(first).__name__ if isinstance(first, SCALARS) else shape(first, depth - 1)
        return f"{kind.__name__}[{len(value)}] of {inner}"
    if isinstance(value, dict):
        if depth <= 0:
            return f"{kind.__name__}[{len(value)}]"
        return "{" + ", ".join(f"{key}: {shape(item, depth - 1)}" for key, item in value.items()) + "}"
    if dataclasses.is_dataclass(kind) and depth > 0:
        fields = dataclasses.fields(value)
        if len(fields) <= MANY:
            inner = ", ".join(f"{f.name}={shape(getattr(value, f.name), depth - 1)}" for f in fields)
            return f"{kind.__name__}({inner})"
    return kind.__name__


def _is_array(kind: type) -> bool:
    """Return whether the type is a tensor or an array, by type names: tracing must not import torch."""
    named = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
    return bool(named & {("torch", "Tensor"), ("numpy", "ndarray")})
