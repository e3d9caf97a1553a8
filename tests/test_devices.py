"""Devices that aren't the CPU: what is asked of them, with stand-ins of torch's calls for kinds that no machine of ours
has; and that no code takes "cuda" for all of them."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import ft_host
from ft_host.batch import Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.distributed.processes import precision, start_processes
from ft_host.errors import ConfigError
from ft_host.metrics import Accumulator, total
from ft_host.monitor.memory_usage import peak_memory_mb
from ft_host.util import devices, seeds

ROOT = Path(ft_host.__file__).parent.parent
CPU, CUDA, MPS, XPU = (torch.device(kind) for kind in ("cpu", "cuda:0", "mps:0", "xpu:0"))

# What is of CUDA alone, or of a GPU that vLLM or Triton drives, by file and why.
OF_CUDA = {
    "ft_host/diagnostics/rules/probes.py": "kinds that Triton compiles for, without torch",
    "ft_host/distributed/processes.py": "segments of CUDA's allocator that grow",
    "ft_host/generation/frames.py": "CUDA's graphs",
    "ft_host/models/tiles.py": "the key of what is on any GPU",
    "ft_host/models/varlen.py": "FlashAttention's kernels in torch",
    "ft_host/monitor/memory_estimate.py": "the same key",
    "ft_host/util/devices.py": "its tables",
    "ft_host/testing/conformance/probe.py": "what an import has changed, a start of CUDA among it",
    "ft_host/util/transfer.py": "pinned memory",
    "plugins/ft-vllm/ft_vllm/opening.py": "nccl and ipc",
    "plugins/ft-vllm/ft_vllm/serve.py": "vLLM's own device",
    "plugins/ft-vllm/ft_vllm/transfer.py": "nccl and ipc",
}


def names_cuda(tree: ast.AST) -> bool:
    """Whether code compares with "cuda", looks it up, or reads `torch.cuda` or `is_cuda`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "is_cuda"):
            return True
        parts = [*node.comparators, node.left] if isinstance(node, ast.Compare) else []
        parts += [node.slice] if isinstance(node, ast.Subscript) else []
        parts += node.keys if isinstance(node, ast.Dict) else []
        parts += node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else []
        parts += node.args if isinstance(node, ast.Call) else []
        if any(isinstance(part, ast.Constant) and part.value == "cuda" for part in parts):
            return True
    return False


def test_no_code_takes_cuda_for_all_that_is_not_the_cpu():
    found = set()
    for path in [*ROOT.glob("ft_host/**/*.py"), *ROOT.glob("plugins/*/ft_*/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        if "cuda" in text and names_cuda(ast.parse(text)):
            found.add(path.relative_to(ROOT).as_posix())
    assert found <= OF_CUDA.keys(), "ask ft_host.util.devices, or say here what of it is of CUDA alone"
    assert OF_CUDA.keys() <= found, "no longer needed here"


@pytest.mark.parametrize(
    "code",
    [
        "if device.type == 'cuda': pass",
        "size = {'cpu': 1, 'cuda': 2}[kind]",
        "torch.cuda.synchronize()",
        "fused = weight.is_cuda",
        "model.to('cuda')",
        "if device.type in ('cuda', 'xpu'): pass",
    ],
)
def test_each_way_to_name_cuda_is_seen(code):
    assert names_cuda(ast.parse(code)) and not names_cuda(ast.parse(code.replace("cuda", "other")))


# ---------------------------------------------------------------- types


def test_bfloat16_is_the_default_only_where_it_is_not_emulated(monkeypatch):
    config = RunConfig(model="m", dataset="d")
    native = True

    def supported(including_emulation: bool = True) -> bool:  # a T4's is True, since it emulates them
        return including_emulation or native

    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "is_bf16_supported", supported)
    assert [precision(config, device) for device in (CUDA, XPU)] == ["bf16", "bf16"]
    native = False
    assert [precision(config, device) for device in (CUDA, XPU)] == ["no", "no"]
    for device in (CPU, MPS, torch.device("privateuseone:0")):
        assert precision(config, device) == "no"


def test_float64_is_left_out_where_a_device_has_none(monkeypatch):
    class Properties:
        has_fp64 = False

    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: Properties)
    assert [devices.widest(device) for device in (CPU, CUDA)] == [torch.float64] * 2
    assert [devices.widest(device) for device in (MPS, XPU)] == [torch.float32] * 2
    Properties.has_fp64 = True
    assert devices.widest(XPU) == torch.float64


def test_a_batch_and_the_metrics_hold_no_float64_on_a_device_without(monkeypatch):
    monkeypatch.setattr(devices, "FLOAT64", {"cpu": lambda device: False})
    batch = flat_batch([Segment(input_ids=[1, 2], labels=[1, 2], row=0)], num_rows=1)
    batch.columns |= {"returns": torch.tensor([0.5], dtype=torch.float64), "groups": torch.tensor([3])}
    moved = batch.to("cpu").columns
    assert [moved[name].dtype for name in ("returns", "groups")] == [torch.float32, torch.int64]
    sums = Accumulator()
    sums.add({"a": total(torch.tensor(0.25)), "b": total(0.5)})
    assert sums.local() == {"a": ("total", [("sum", 0.25)]), "b": ("total", [("sum", 0.5)])}
    assert {value.dtype for _, value in sums.parts.values()} == {torch.float32}


# ---------------------------------------------------------------- random states


class Numbers:
    """Stands for a device's random numbers: its state is the count of those that were drawn."""

    def __init__(self) -> None:
        self.drawn = 0

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return torch.tensor([self.drawn], dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.drawn = int(state)


@pytest.mark.parametrize("device", [CUDA, MPS, XPU], ids=str)
def test_random_states_of_any_kind_are_kept_and_put_back(device, monkeypatch):
    numbers = Numbers()
    monkeypatch.setattr(torch, "get_device_module", lambda device=None: numbers)
    monkeypatch.setattr(devices, "accelerator", lambda: device)
    numbers.drawn = 7
    kept = seeds.random_states()
    assert set(kept) == {"python", "numpy", "torch", device.type}
    first = (random.random(), np.random.random(), float(torch.rand(())))
    numbers.drawn = 9
    seeds.set_random_states(kept)
    assert numbers.drawn == 7 and (random.random(), np.random.random(), float(torch.rand(()))) == first
    monkeypatch.setattr(devices, "accelerator", lambda: torch.device("meta"))  # resumed on another kind
    numbers.drawn = 11
    seeds.set_random_states(kept)
    assert numbers.drawn == 11


@pytest.mark.parametrize("device", [CPU, CUDA, XPU], ids=str)
def test_a_fork_puts_back_the_cpu_and_the_device(device, monkeypatch):
    numbers = Numbers()
    for module in (torch.cuda, torch.xpu):
        monkeypatch.setattr(module, "get_rng_state", numbers.get_rng_state)
        monkeypatch.setattr(module, "set_rng_state", numbers.set_rng_state)
    before = torch.get_rng_state()
    with devices.forked_random(device):
        numbers.drawn = 5
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert numbers.drawn == (5 if device == CPU else 0)


# ---------------------------------------------------------------- memory


def test_memory_of_a_mac_is_what_metal_tells(monkeypatch):
    for name, value in (
        ("driver_allocated_memory", 6 << 20),
        ("current_allocated_memory", 4 << 20),
        ("recommended_max_memory", 16 << 20),
    ):
        monkeypatch.setattr(torch.mps, name, lambda value=value: value)
    memory = devices.memory_of(MPS)
    assert (memory.allocated, memory.reserved, memory.free, memory.total) == (4 << 20, 6 << 20, 10 << 20, 16 << 20)
    assert memory.most_allocated is memory.most_reserved is memory.retries is None
    resident = peak_memory_mb(CPU)
    assert peak_memory_mb(MPS) >= resident > 0  # nobody counts Metal's peak, so that of the process is told


# ---------------------------------------------------------------- processes


def test_processes_that_could_not_exchange_tensors_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [devices.exchanges(device) for device in (CPU, CUDA, MPS)] == [True, True, False]
    monkeypatch.setattr(devices, "chosen", lambda use_cpu: MPS)
    with pytest.raises(ConfigError, match="num_processes: 2 processes can't exchange gradients on mps.*use_cpu: true"):
        start_processes(RunConfig(model="m", dataset="d"))


def test_a_run_takes_the_accelerator_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr(devices, "accelerator", lambda: XPU)
    assert devices.chosen(use_cpu=False) == XPU and devices.chosen(use_cpu=True) == CPU
    monkeypatch.setattr(devices, "accelerator", lambda: None)
    assert devices.chosen(use_cpu=False) == CPU
