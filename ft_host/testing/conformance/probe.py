"""Imports a package in a process of its own, and says what that has changed outside of it.

    python -m ft_host.testing.conformance.probe ASKED.json ANSWER.json

ASKED: {"configs": [modules], "modules": [modules], "package": name}. Without "modules" only the configs are imported,
and the answer says what they pull in; else the answer is what all of them have changed. What the package's modules
import of others is imported first, so that it isn't taken for the package's doing.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import io
import json
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "vllm", "jax", "tensorflow")
State = dict[str, dict[str, str]]


def main(asked: str, answer: str) -> None:
    found = json.loads(Path(asked).read_text(encoding="utf-8"))
    said = changes_by(found["modules"], found["package"]) if "modules" in found else pulled_in(found["configs"])
    Path(answer).write_text(json.dumps(said), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # without what the package may have left to be done at exit


def pulled_in(configs: list[str]) -> dict[str, Any]:
    """Heavy libraries that are loaded after the configs, and the seconds of the CPU that these took beside the
    host's."""
    importlib.import_module("ft_host.config")
    began = time.process_time()
    heavy, error = [], ""
    for module in configs:
        try:
            importlib.import_module(module)
        except BaseException as raised:  # of any kind: it is what the parent is to say
            error = f"{module}: {type(raised).__name__}: {raised}"
        heavy += [[module, name] for name in HEAVY if name in sys.modules and name not in [each[1] for each in heavy]]
    return {"heavy": heavy, "seconds": time.process_time() - began, "error": error}


def changes_by(modules: list[str], package: str) -> dict[str, Any]:
    """What an import of the modules has changed in the process, in words."""
    import torch  # noqa: F401  # its random state is looked at

    libraries(modules, package)
    printed, error = io.StringIO(), ""
    before, began, waited = state(package), time.process_time(), time.monotonic()
    with contextlib.redirect_stdout(printed):
        for module in modules:
            try:
                importlib.import_module(module)
            except BaseException as raised:
                error = f"{module}: {type(raised).__name__}: {raised}"
    seconds, waited = time.process_time() - began, time.monotonic() - waited
    found = list(differences(before, state(package)))
    if printed.getvalue():
        found.append(f"output: {printed.getvalue()[:80]!r} is printed")
    return {"changes": found, "seconds": seconds, "waited": waited, "error": error}


# ---------------------------------------------------------------- what is imported first


def libraries(modules: list[str], package: str) -> None:
    """Import what the modules import, at their top level, of anything but the package."""
    seen: set[Path] = set()
    waiting = [file for module in modules for file in files_of(module)]
    while waiting:
        file, name = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for node in imports_of(ast.parse(file.read_bytes()).body):
            inside = package_of(node, name, file.name == "__init__.py")
            own = [each for each in inside if each.partition(".")[0] == package]
            if own:
                waiting += [found for each in own for found in files_of(each)]
                continue
            # One that fails does so again where the package imports it: there it is said.
            with contextlib.suppress(Exception):
                exec(compile(ast.Module([node], []), str(file), "exec"), {"__name__": name})


def imports_of(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when a module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            yield from imports_of([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from imports_of([*node.body, *node.orelse, *(each for part in node.handlers for each in part.body)])


def package_of(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> list[str]:
    """The modules that a statement in `module` may name, absolute."""
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    base = node.module or ""
    if node.level:
        parts = module.split(".") + ([""] if is_package else [])
        base = ".".join([*parts[: -node.level], *([base] if base else [])])
    return [base, *(f"{base}.{each.name}" for each in node.names)]


def files_of(module: str) -> Iterator[tuple[Path, str]]:
    """The files that an import of a module runs, with their names."""
    from ft_host.registry.modules import locate

    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        file = locate(name, attr=False)[0]
        if file is not None:
            yield Path(file), name


# ---------------------------------------------------------------- what is compared


def state(package: str) -> State:
    """What an import may change and somebody else relies on, by what it is of."""
    import numpy
    import psutil
    import torch

    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    others = {name: each for name, each in loggers.items() if name.partition(".")[0] != package}
    return {
        "the random state": {
            "random": digest(random.getstate()),
            "numpy": digest(numpy.random.get_state()),
            "torch": digest(torch.get_rng_state().tolist()),
        },
        "the environment": dict(os.environ),
        "logging": {
            name or "root": f"level {each.level}, handlers {each.handlers}{', disabled' if each.disabled else ''}"
            for name, each in ({"": logging.root} | others).items()
            if not name or each.level or each.handlers or each.disabled
        }
        | {"disable": str(logging.root.manager.disable)},
        "warnings": {f"the filter {each}": "there" for each in warnings.filters}
        | {"showwarning": warnings.showwarning.__qualname__},
        "files": {str(file): f"of {file.stat().st_size} bytes" for file in Path().rglob("*") if file.is_file()},
        "threads": {f"{each.name} ({each.ident})": "running" for each in threading.enumerate()},
        "processes": {str(each.pid): "running" for each in psutil.Process().children(recursive=True)},
        "torch": {
            "get_default_dtype": str(torch.get_default_dtype()),
            "get_default_device": str(torch.get_default_device()),
            "get_num_threads": str(torch.get_num_threads()),
            "is_grad_enabled": str(torch.is_grad_enabled()),
            "get_float32_matmul_precision": torch.get_float32_matmul_precision(),
            "are_deterministic_algorithms_enabled": str(torch.are_deterministic_algorithms_enabled()),
            "anomaly detection": str(torch.is_anomaly_enabled()),
            "cuda.is_initialized": str(torch.cuda.is_initialized()),
        },
        "the interpreter": {
            "sys.path": str(sys.path),
            "the working directory": str(Path.cwd()),
            "sys.excepthook": sys.excepthook.__qualname__,
            "the recursion limit": str(sys.getrecursionlimit()),
            **{f"the handler of {each.name}": str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)},
        },
    }


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def differences(before: State, after: State) -> Iterator[str]:
    for part, found in after.items():
        was = before[part]
        for name in sorted({*was, *found}):
            if was.get(name) == found.get(name):
                continue
            if part == "the random state":
                yield f"{part} of {name} has moved"
            else:
                yield f"{part}: {name} is {short(found.get(name))}, and was {short(was.get(name))}"


def short(text: str | None) -> str:
    return "absent" if text is None else text if len(text) < 100 else f"{text[:100]}…"


if __name__ == "__main__":
    main(*sys.argv[1:])
