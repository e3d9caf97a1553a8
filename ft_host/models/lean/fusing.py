"""Which kernels of `fused` a run uses: those that compile on its device, forward and backward, and give there what
operations one by one give. All others stay eager, with the reason for the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ft_host.models.compiling import reason_of
from ft_host.models.lean import fused, gated, norm
from ft_host.models.lean.trying import TOLERANCE, apart_by, outcome, random, trial
from ft_host.util.memory import ran_out

Case = tuple[Any, Callable[..., torch.Tensor], torch.Tensor, list[torch.Tensor]]  # key, forward, states, weights

REFUSED: dict[Any, str] = {}  # why, by key
ELEMENTS = 1 << 21  # of the first trial: Inductor cuts its work for as many tokens as it sees first
FEW = (37, fused.LEAST)  # tokens of the others, which must not be compiled anew


def lengths(width: int) -> Iterator[int]:
    yield max(256, ELEMENTS // width)
    yield from FEW


def _try(case: Callable[[torch.Generator, int], Case], width: int, device: torch.device) -> str | None:
    """Put the key of a case into `FUSED`, or return why it isn't there."""
    if torch._dynamo.config.disable:
        return "TORCH_COMPILE_DISABLE is set"
    with fused.of_any_size(), trial(device) as generator:
        for length in lengths(width):
            key, forward, states, weights = case(generator, length)
            if key in REFUSED or (key in fused.FUSED and length not in FEW):
                return REFUSED.get(key)
            fused.FUSED.discard(key)
            theirs = outcome(forward, states, weights)
            fused.FUSED.add(key)
            try:
                apart = apart_by(outcome(forward, states, weights), theirs)
            except Exception as error:  # of whatever kind a compiler raises; it is told
                if ran_out(error):
                    fused.FUSED.discard(key)
                    raise
                REFUSED[key] = reason_of(error)
            else:
                types = {each.dtype for each in (states, *weights)}
                if apart > max(TOLERANCE[dtype] for dtype in types):
                    REFUSED[key] = f"what is compiled differs by {apart:.2g} from operations one by one"
            if key in REFUSED:
                fused.FUSED.discard(key)
                return REFUSED[key]
    return None


def fuse_norm(
    form: norm.NormForm, weight: torch.Tensor | None, types: set[torch.dtype], device: torch.device
) -> dict[torch.dtype, str]:
    """Compile a norm for inputs of these types. Returns why that isn't possible, by type."""
    if weight is None:
        return dict.fromkeys(types, "without a weight their width isn't known before they are called")
    width, failed = weight.numel(), {}
    for kind in sorted(types, key=str):
        for held in sorted({weight.dtype, kind}, key=str):  # FSDP2 may give weights in the type of the maths

            def case(generator: torch.Generator, length: int, kind: Any = kind, held: Any = held) -> Case:
                states = random(generator, length, width, dtype=kind, device=device)
                states[-1] *= 1e-3  # so small that the epsilon counts
                own = (0.5 + random(generator, width, dtype=held, device=device)).requires_grad_()
                key = fused.key_of_norm(states, own, form)
                return key, lambda given: norm.norm(given, own, form), states.requires_grad_(), [own]

            empty = (torch.empty(0, width, dtype=dtype, device=device) for dtype in (kind, held))
            if not norm.fuses(*empty, form) and (why := _try(case, width, device)):
                failed[kind] = why
    return failed


def fuse_product(
    name: str, width: int | None, joined: bool, types: set[torch.dtype], device: torch.device
) -> dict[torch.dtype, str]:
    """The same of a gated product. `joined`: gate and up are halves of one tensor."""
    if width is None:
        return dict.fromkeys(types, "their width isn't known before they are called")
    failed = {}
    for kind in sorted(types, key=str):

        def case(generator: torch.Generator, length: int, kind: Any = kind) -> Case:
            both = random(generator, length, 2 * width, dtype=kind, device=device)
            gate, up = both.chunk(2, -1)
            if joined:
                key = fused.key_of_product(gate, up, name)
                return key, lambda both: gated.gated(*both.chunk(2, -1), name), both.requires_grad_(), []
            gate, up = gate.contiguous().requires_grad_(), up.contiguous().requires_grad_()
            return fused.key_of_product(gate, up, name), lambda gate: gated.gated(gate, up, name), gate, [up]

        if why := _try(case, width, device):
            failed[kind] = why
    return failed
