"""Compiles the pretended device, once for each torch, Python and source, into the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

SOURCE = Path(__file__).with_name("pretended.cpp")
NAME = "ft_host_pretended_device"


def missing() -> str | None:
    """Why the device can't be there; None where it can."""
    if torch.version.cuda or torch.version.hip:
        return "torch was built with CUDA; the pretended device needs a build without it"
    if shutil.which(_compiler()) is None:
        return f"there is no C++ compiler ({_compiler()})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "there is no Python.h"
    return None


def load() -> ModuleType:
    """Return the compiled module. Raises RuntimeError with what the compiler said."""
    file = _folder() / f"{NAME}.so"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_suffix(".lock"), "w") as lock:  # several processes may want it at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                _compile(file)
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _folder() -> Path:
    what = "\n".join((SOURCE.read_text(encoding="utf-8"), Path(__file__).read_text(encoding="utf-8"), _compiler()))
    versions = f"{torch.__version__} {torch.__file__} {sys.version}"
    key = hashlib.sha256(f"{versions}\n{what}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ft-host" / "pretended-device" / key


def _compile(file: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    made = file.with_suffix(f".{os.getpid()}")
    command = [_compiler(), "-std=c++20", "-O1", "-fPIC", "-shared", "-w", str(SOURCE), "-o", str(made)]
    command += [f"-DTORCH_EXTENSION_NAME={NAME}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    for path in library_paths():
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    command += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the pretended device doesn't compile with torch {torch.__version__}:\n{done.stderr}")
    made.replace(file)
