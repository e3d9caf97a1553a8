"""Compiles the kernels of flex attention and of lean layers for sm_90, an H100 or H200, on a machine without a GPU.

Inductor lowers a call on the pretended device (tests/device), Triton compiles what it wrote, and ptxas assembles it: as
on a GPU, and with its limit of shared memory. What is compiled isn't launched; in place of results there is memory as
it was. Of Triton, the driver is replaced, which would load kernels into CUDA; all else is its own.

    python tests/nightly/sm90.py "llama 3 8B" …      # a line of JSON for each case; without names, for all
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from device import pretended  # noqa: E402

from nightly.families import CASES, Heads  # noqa: E402
from nightly.layers import LAYERS, Layer  # noqa: E402

SHARED = 227 << 10  # bytes of shared memory that a block of an H100 may ask for
PROPERTIES = {
    "max_shared_mem": SHARED,
    "max_num_regs": 65536,
    "multiprocessor_count": 132,
    "warpSize": 32,
    "sm_clock_rate": 1,
    "mem_clock_rate": 1,
    "mem_bus_width": 1,
}

compile_ = torch.compile  # the pretended device replaces it by one without Inductor
pretended.start()
torch.compile = compile_

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.driver import DriverBase  # noqa: E402


class Utils:
    """What Triton asks of CUDA's driver: it loads a kernel, and says how many registers and threads it has."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, 1, 64, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return PROPERTIES

    def set_printf_fifo_size(self, size: int) -> None: ...


class Driver(DriverBase):
    """A card of the kind that is compiled for."""

    utils = Utils()
    binary_ext = "cubin"

    def __init__(self) -> None: ...

    @staticmethod
    def launcher_cls(source: Any, metadata: Any) -> Any:
        return lambda *arguments, **named: None  # nothing is launched

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None: ...

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return 9, 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_benchmarker(self) -> Any:
        return lambda function, **named: 1.0

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, cache: Any) -> None: ...


def take_the_place_of_cuda() -> list[tuple[str, int]]:
    """Make Inductor compile for the driver above. Returns the list to which each kernel's name and bytes of shared
    memory are added as it is compiled."""
    import torch._inductor.config as inductor
    import torch._inductor.runtime.triton_helpers as helpers
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton
    import triton.compiler.compiler as compiler

    torch.version.cuda = "13.0"
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    torch._C._dynamo.guards._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda"
    )
    triton.runtime.driver.set_active(Driver())
    helpers.set_driver_to_gpu = lambda: None
    heuristics.CachingAutotuner.bench = lambda *arguments, **named: 1.0
    inductor.compile_threads = 1
    inductor.force_disable_caches = True
    inductor.use_static_cuda_launcher = inductor.use_static_triton_launcher = False

    built: list[tuple[str, int]] = []
    prepare = compiler.CompiledKernel._init_handles

    def prepared(kernel: Any) -> Any:
        if kernel.module is None:
            built.append((kernel.name, kernel.metadata.shared))
        return prepare(kernel)

    compiler.CompiledKernel._init_handles = prepared
    return built


def attend(heads: Heads) -> None:
    """Attention of a forest in which rows share a prompt, with a backward pass unless it says otherwise."""
    from ft_host.models import flex
    from ft_host.models.layout import FlatMask, Layout

    lengths = [length * heads.tokens // 410 for length in (100, 50, 50, 60, 80, 30, 40)]
    layout = Layout(lengths, [-1, 0, 0, 0, -1, 4, 4], torch.device("cuda"), "flex")
    shapes = ((heads.queries, heads.width), (heads.keys, heads.width), (heads.keys, heads.values or heads.width))
    tensors = [
        torch.zeros(1, sum(lengths), count, width, dtype=heads.dtype, device="cuda").transpose(1, 2)
        for count, width in shapes
    ]
    for each in tensors:
        each.requires_grad_(heads.backward)
    sinks = torch.zeros(heads.queries, dtype=heads.dtype, device="cuda", requires_grad=True) if heads.sinks else None
    with torch.set_grad_enabled(heads.backward):
        out = flex.flex_segments(*tensors, FlatMask(layout, heads.window), heads.width**-0.5, 0.0, heads.softcap, sinks)
        if heads.backward:
            out.sum().backward()


def compute(layer: Layer) -> None:
    """A lean layer's forward and backward pass, of many tokens and of few, in the kernels that its trial would take."""
    from ft_host.models.lean import fused

    one_thread = torch.autograd.set_multithreading_enabled(False)  # another one wouldn't know Inductor's settings
    with one_thread, fused.of_any_size():
        for tokens in (4096, 2, 333):
            output_of(layer, tokens).sum().backward()


def output_of(layer: Layer, tokens: int) -> torch.Tensor:
    from ft_host.models.lean import fused, gated, norm

    shape = (1, tokens, layer.width) if layer.heads is None else (1, tokens, layer.heads, layer.width)
    states, other = (torch.zeros(shape, dtype=layer.states, device="cuda", requires_grad=True) for _ in range(2))
    if layer.name is None:
        form = norm.NormForm(1e-6, layer.offset, not layer.offset)
        weight = torch.ones(layer.width, dtype=layer.weight, device="cuda", requires_grad=True)
        given = states if layer.heads is None else states.transpose(1, 2)
        fused.FUSED.add(fused.key_of_norm(given, weight, form))
        assert not norm.fuses(given, weight, form)  # the device has no kernel of its own, so that all forms compile
        out = norm.norm(given, weight, form)
        assert out.stride() == given.stride()
        return out
    halves = torch.cat([states, other], -1).chunk(2, -1) if layer.joined else (states, other)
    fused.FUSED.add(fused.key_of_product(*halves, layer.name))
    return gated.gated(*halves, layer.name)


def main(names: list[str]) -> None:
    built = take_the_place_of_cuda()
    from torch._dynamo.utils import counters

    for name in names or [*CASES, *LAYERS]:
        built.clear()
        start, graphs = time.time(), counters["stats"]["unique_graphs"]
        told: dict[str, Any] = {"case": name, "error": None}
        try:
            attend(CASES[name]) if name in CASES else compute(LAYERS[name])
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            told["error"] = f"{type(error).__name__}: {' '.join(lines[:3])}"
            traceback.print_exc()
        told |= {"kernels": list(built), "graphs": counters["stats"]["unique_graphs"] - graphs}
        print(json.dumps(told | {"seconds": round(time.time() - start, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
