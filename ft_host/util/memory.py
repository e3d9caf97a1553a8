"""The estimated peak memory of a plan, by part, and the phase of a run in which memory ran out. Imports no torch.

The estimate is for one process. Weights, gradients, optimizer and auxiliary models are counted from sizes; activations,
logits, keys and values are computed for the largest micro-batch to be expected.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from ft_host.errors import OutOfMemory

MB = 2**20
FEW_ROWS, MANY_ROWS = 64, 256  # completions that are generated at a time: on a CPU, and at most where memory decides


# The words for each part, in the order of the sentence.
PARTS = {
    "base": "interpreter and libraries",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "companions": "other models",
    "activations": "activations",
    "logits": "logits",
    "generation": "generation",
}


def rows_that_fit(left: float, row: int) -> int:
    """Return how many completions are generated at a time with `left` bytes, of which each needs `row` bytes at its
    longest: MANY_ROWS, or fewer, in eights."""
    return max(8, min(MANY_ROWS, int(0.7 * left / row) // 8 * 8))


def rows_at_a_time(config: Any, facts: Mapping[str, Any]) -> int:
    """Return decode_batch_size, or what the run has taken for it."""
    return config.decode_batch_size or facts.get("plan/decode_batch_size", FEW_ROWS)


def peak_mb(parts: Mapping[str, float]) -> float:
    """Return the peak of a step: training holds gradients, activations and logits; generation holds keys and values."""
    always = sum(parts.get(name, 0.0) for name in ("base", "weights", "optimizer", "companions"))
    training = sum(parts.get(name, 0.0) for name in ("gradients", "activations", "logits"))
    return always + max(training, parts.get("generation", 0.0))


def memory_facts(parts: Mapping[str, float]) -> dict[str, float]:
    """Return the estimate as facts of the run."""
    return {"plan/memory_mb": round(peak_mb(parts), 1)} | {
        f"plan/memory_{name}_mb": round(value, 1) for name, value in parts.items()
    }


def in_words(parts: Mapping[str, float]) -> str:
    """Return "about 412 MB of memory at the peak: weights 120, ...", without parts of less than a hundredth."""
    whole = peak_mb(parts)
    named = [
        f"{said} {parts[name]:,.0f}" for name, said in PARTS.items() if parts.get(name, 0.0) >= max(0.5, 0.01 * whole)
    ]
    return f"about {whole:,.0f} MB of memory at the peak of a process, estimated: {', '.join(named)}"


LOADING, COMPANIONS = "loading the model", "loading the models beside it"


FORWARD, BACKWARD, UPDATE = "the forward pass", "the backward pass", "the optimizer's step"


GENERATION, EVALUATION, SAVING = "generation", "an evaluation", "writing a checkpoint"


ANNOTATION = "scoring rows with other models"


# torch's own class is a RuntimeError with the first text; the CPU allocator and cuBLAS have no class of their own.
MARKS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Return whether an error came from an allocator."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)
    )


@contextlib.contextmanager
def oom_context(phase: str, step: int = 0) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into OutOfMemory, with the fact for SYS004.

    `phase`: one of those above. `step`: the current step. With nested blocks the innermost phase counts.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        # The frames hold tensors, mostly activations, as long as the error exists: a checkpoint needs the
        # memory.
        traceback.clear_frames(error.__traceback__)
        during = f"{phase} of step {step}" if step else phase
        message = str(error).partition("\n")[0].removesuffix(".") or type(error).__name__
        raise OutOfMemory(
            f"memory ran out in {during} ({message})",
            phase=phase,
            facts={"watch/out_of_memory": phase, "watch/out_of_memory_step": step},
        ) from error
