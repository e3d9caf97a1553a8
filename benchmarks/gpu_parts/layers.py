"""Norms and gated MLPs, forward and backward: a model's own, lean ones in each way that there is, and Liger's.

    python layers.py '{"device": "cuda", "tokens": 8192, "repeats": 20, "shapes": {"0.6B": {…}}}' OUT.json

A process of its own, for gpu.py. Of each way: milliseconds a pass, the peak of memory over its inputs, and bytes a
second, counted on what a pass has to read and write at the least, which a kernel for the whole of it does.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

import ft_host.models  # noqa: F401  (lean layers are imported with it)
from ft_host.models.lean import fused, fusing, gated, mlps, norm
from ft_host.models.lean.remaking import remaking
from ft_host.util import devices

OWN, EAGER, KERNEL, COMPILED, LIGER = "own", "operation by operation", "torch's kernel", "compiled", "Liger"
WARM = 3  # passes that aren't counted
BF16, F32 = torch.bfloat16, torch.float32


class NotHere(Exception):
    """Why a way isn't measured."""


@dataclass
class Way:
    """A function, the weights that it learns, and a context for its passes."""

    function: Callable[..., torch.Tensor]
    weights: list[torch.Tensor]
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


@dataclass(frozen=True)
class Case:
    """`ways`: by label, what makes the way that is measured; `moved`: bytes of a pass at the least."""

    title: str
    inputs: list[torch.Tensor]
    ways: dict[str, Callable[[], Way]]
    moved: int | None


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(*shape, device=device).to(dtype).requires_grad_()


def liger() -> None:
    if importlib.util.find_spec("liger_kernel") is None:
        raise NotHere("liger-kernel isn't installed")


def triton(device: torch.device) -> None:
    if device.type not in devices.TRITON:
        raise NotHere(f"Triton doesn't compile for {device.type}")


def worked(failed: dict[torch.dtype, str]) -> None:
    if failed:
        raise NotHere("; ".join(failed.values()))


# ---------------------------------------------------------------- what is measured


def of_norm(title: str, shape: tuple[int, ...], states: torch.dtype, weight: torch.dtype, device: torch.device) -> Case:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    form, width = norm.NormForm(1e-6, 0.0, True), shape[-1]
    module = Qwen3RMSNorm(width, eps=form.eps).to(device, weight)
    given = random(*shape, dtype=states, device=device)

    def lean(x: torch.Tensor) -> torch.Tensor:
        return norm.norm(x, module.weight, form)

    def kernel() -> Way:
        if not norm.fuses(given, module.weight, form):
            raise NotHere("it has none for these types here")
        return Way(lean, [module.weight])

    def compiled() -> Way:
        triton(device)
        with without_kernel():
            worked(fusing.fuse_norm(form, module.weight, {states}, device))
        return Way(lean, [module.weight], without_kernel)

    def ligers() -> Way:
        liger()
        from liger_kernel.transformers.rms_norm import LigerRMSNorm

        # in place it would write into the one gradient that all passes are given
        other = LigerRMSNorm(width, eps=form.eps, in_place=False).to(device, weight)
        return Way(other, [other.weight])

    out = torch.promote_types(states, weight).itemsize
    # states and output; gradient of the output, states again and their gradient
    moved = given.numel() * (3 * states.itemsize + 2 * out)
    ways: dict[str, Callable[[], Way]] = {
        OWN: lambda: Way(module, [module.weight]),
        EAGER: lambda: Way(lean, [module.weight], without_kernel),
        KERNEL: kernel,
        COMPILED: compiled,
        LIGER: ligers,
    }
    return Case(title, [given], ways, moved)


def of_product(title: str, shape: tuple[int, ...], device: torch.device) -> Case:
    given = [random(*shape, dtype=BF16, device=device) for _ in range(2)]

    def lean(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return gated.gated(gate, up, "silu")

    def compiled() -> Way:
        triton(device)
        worked(fusing.fuse_product("silu", shape[-1], False, {BF16}, device))
        return Way(lean, [])

    def ligers() -> Way:
        liger()
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return Way(LigerSiLUMulFunction.apply, [])

    ways: dict[str, Callable[[], Way]] = {
        OWN: lambda: Way(lambda gate, up: F.silu(gate) * up, []),
        EAGER: lambda: Way(lean, []),
        COMPILED: compiled,
        LIGER: ligers,
    }
    return Case(title, given, ways, 8 * given[0].numel() * BF16.itemsize)


def of_mlp(title: str, tokens: int, shape: dict[str, Any], device: torch.device) -> Case:
    """Held in float32 under autocast to bfloat16, as all weights are trained by default; lean ones as in a run, with
    what is made again there."""
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

    config = Qwen3Config(**shape)
    module = Qwen3MLP(config).to(device)
    given = random(1, tokens, config.hidden_size, dtype=F32, device=device)
    form = mlps.MlpForm("gate_proj", "up_proj", "down_proj", "silu")
    parts, weights = dict(module.named_children()), list(module.parameters())

    def lean() -> Way:
        def made_again(x: torch.Tensor) -> torch.Tensor:
            with remaking():  # the input of the last layer isn't kept
                return form(parts, x)

        return Way(autocast(device, made_again), weights)

    def compiled() -> Way:
        triton(device)
        worked(fusing.fuse_product("silu", config.intermediate_size, False, {BF16}, device))
        return lean()

    def ligers() -> Way:
        liger()
        from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

        other = LigerSwiGLUMLP(config).to(device)
        return Way(autocast(device, other), list(other.parameters()))

    ways: dict[str, Callable[[], Way]] = {
        OWN: lambda: Way(autocast(device, module), weights),
        EAGER: lean,
        COMPILED: compiled,
        LIGER: ligers,
    }
    return Case(title, [given], ways, None)


def autocast(device: torch.device, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(*arguments: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, BF16):
            return function(*arguments)

    return call


@contextlib.contextmanager
def without_kernel() -> Iterator[None]:
    with mock.patch.object(norm, "fuses", lambda *given: False):
        yield


def cases(tokens: int, shapes: dict[str, dict[str, Any]], device: torch.device) -> Iterator[Case]:
    for name, shape in shapes.items():
        hidden, inner = shape["hidden_size"], shape["intermediate_size"]
        heads = (1, tokens, shape["num_attention_heads"], shape["head_dim"])
        yield of_norm(f"{name}: norm of states, float32", (1, tokens, hidden), F32, F32, device)
        yield of_norm(f"{name}: norm of states, bfloat16 throughout", (1, tokens, hidden), BF16, BF16, device)
        yield of_norm(f"{name}: norm of queries, bfloat16, weight in float32", heads, BF16, F32, device)
        yield of_product(f"{name}: gated product, bfloat16", (1, tokens, inner), device)
        yield of_mlp(f"{name}: gated MLP, bfloat16 maths, weights in float32", tokens, shape, device)


# ---------------------------------------------------------------- how


def measured(case: Case, label: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """The figures of a way, or why there are none."""
    fused.FUSED.clear()
    fusing.REFUSED.clear()
    torch.manual_seed(0)
    try:
        way = case.ways[label]()
        with way.context(), fused.of_any_size():
            took, peak = timed(case, way, repeats, device)
    except NotHere as error:
        return {"failed": str(error)}
    except Exception as error:  # of whatever kind: it is told, and the others go on
        return {"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}
    return {"ms": took * 1e3, "peak_mib": peak, "gb_per_s": None if case.moved is None else case.moved / took / 1e9}


def timed(case: Case, way: Way, repeats: int, device: torch.device) -> tuple[float, float | None]:
    """Seconds of a pass, the median of five rounds, and MiB at its peak."""
    grad = torch.ones_like(way.function(*case.inputs))

    def once() -> None:
        torch.autograd.grad(way.function(*case.inputs), [*case.inputs, *way.weights], grad)

    for _ in range(WARM):
        once()
    peak, seconds, passes = peak_of(once, device), [], max(1, repeats // 5)
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(passes):
            once()
        devices.synchronize(device)
        seconds.append((time.perf_counter() - began) / passes)
    return statistics.median(seconds), peak


def peak_of(once: Callable[[], None], device: torch.device) -> float | None:
    if device.type == "cpu":
        return None
    module = devices.module_of(device)
    let_go(device)
    before = module.memory_allocated(device)
    module.reset_peak_memory_stats(device)
    once()
    devices.synchronize(device)
    return (module.max_memory_allocated(device) - before) / 2**20


def let_go(device: torch.device) -> None:
    """Frees what the device's backward thread still holds of the last pass. It lets go of a pass's last tensors only
    once it waits for the next, which may be after `once` has returned: whoever reads the memory then counts them. By
    the end of another backward, of a number, they are gone."""
    number = torch.ones((), device=device, requires_grad=True)
    torch.autograd.grad(number * 2, number)
    devices.synchronize(device)


def measure(spec: dict[str, Any]) -> list[dict[str, Any]]:
    device, found = torch.device(spec["device"]), []
    for case in cases(spec["tokens"], spec["shapes"], device):
        found.append(
            {
                "title": case.title,
                "ways": {label: measured(case, label, spec["repeats"], device) for label in case.ways},
            }
        )
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(sys.argv[1]))), encoding="utf-8")
