"""Memory that runs out becomes an error that says during what, and what to change. Imports no torch."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ft_host.diagnostics.memory import mends
from ft_host.errors import OutOfMemory

if TYPE_CHECKING:
    from ft_host.config import RunConfig

# torch's own class is a RuntimeError whose text has the first; its allocator on a CPU and cuBLAS have no class.
MARKS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an error is that of an allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)
    )


@contextlib.contextmanager
def doing(phase: str, config: RunConfig, step: int = 0) -> Iterator[None]:
    """`phase`: one of those that `ft_host.diagnostics.memory` has mends for. `step`: the one that is under way.

    Raises OutOfMemory, with the fact for SYS004, where memory runs out within. The innermost of several phases counts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        # What the frames hold, activations above all, would stay as long as the error does: a checkpoint needs the
        # room.
        traceback.clear_frames(error.__traceback__)
        during = f"{phase} of step {step}" if step else phase
        said = str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
        ways = "; ".join(f"({number}) {remedy.why}" for number, remedy in enumerate(mends(phase, config), 1))
        raise OutOfMemory(
            f"memory ran out in {during} ({said}). What costs least comes first: {ways}",
            phase=phase,
            facts={"watch/out_of_memory": phase, "watch/out_of_memory_step": step},
        ) from error
