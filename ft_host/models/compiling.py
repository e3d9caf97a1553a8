"""Functions that are compiled once for a whole run, whatever the number of tokens of its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from ft_host.errors import FtHostError

KERNELS = 64  # that may be compiled of a function in a process. torch's default of 8 is soon reached by several models


def compiled(
    function: Callable[..., Any], name: str, why: str, kernels: int, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Return a function, compiled. `name` and `why`: for the error after `kernels` compilations, what it is, and what
    it is compiled anew for, with a remedy. `options`: of Inductor.

    With `fullgraph` it raises an error at its limit, where it would otherwise go on uncompiled, with all scores in
    memory. Numbers such as a soft cap are constants in the kernel: as symbols they don't pass Inductor.
    """
    kernel = torch.compile(function, dynamic=True, fullgraph=True, options=options)

    @torch._dynamo.config.patch(recompile_limit=kernels, specialize_float=True)
    def call(*arguments: Any) -> Any:
        try:
            return kernel(*arguments)
        except FailOnRecompileLimitHit as error:
            raise FtHostError(f"{name} has been compiled {kernels} times, {why}") from error

    return call


def reason_of(error: BaseException) -> str:
    """Return the line of an error that says what happened; of a C compiler's trouble, what is missing."""
    text = str(error)
    if "Failed to find C compiler" in text or isinstance(error, FileNotFoundError):
        return "there is no C compiler, which Triton starts its kernels through (install gcc, or name another in CC)"
    if "returned non-zero exit status" in text:
        return (
            "the C compiler that Triton starts its kernels through fails: it needs Python.h, which a package such as "
            "python3-dev has"
        )
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
