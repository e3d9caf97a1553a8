"""What tests of the lean layers' compiled kernels do on the device."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from device import cases
from ft_host.config import RunConfig
from ft_host.models import compiling, load_policy
from ft_host.models.lean import fused, fusing, gated, norm
from ft_host.models.lean.trying import outcome
from ft_host.testing import save_tiny, tiny_tokenizer
from ft_host.testing.models import FAMILIES
from ft_host.training import launch

DEVICE = torch.device("cuda")


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def model_of(folder: Path, family: str) -> str:
    if not (folder / family).is_dir():
        save_tiny(folder / family, FAMILIES[family]())
    return str(folder / family)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each compiled function is called in the block, in which small products are compiled as well."""
    calls: Counter[str] = Counter()

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        calls[function.__name__] += 1
        return own(function, *arguments)

    own = fused.run
    with mock.patch.object(fused, "run", run), fused.of_any_size():
        yield calls


@contextlib.contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """What the steps of the block's run call and compile, and what was compiled before them."""
    seen: dict[str, Any] = {}
    fit = launch.fit

    def counting(run: Any, *args: Any, **given: Any) -> Any:
        before = graphs()
        with counted() as calls:
            found = fit(run, *args, **given)
        seen.update(calls=dict(calls), compiled=graphs() - before, loaded=before)
        return found

    with mock.patch.object(launch, "fit", counting):
        yield seen


def trained(folder: Path, family: str, **changes: Any) -> dict[str, Any]:
    """A run of SFT in bfloat16 on the device, of rows of different lengths: what was called and compiled in its steps,
    and its lines beside those of layers that aren't compiled, and of the CPU."""
    changes = {"model": model_of(folder, family), "bf16": True, "max_steps": 3, **changes}
    with watched() as seen:
        ours = cases.trained("sft", folder / "fused", **changes)
    fused.FUSED.clear()
    with mock.patch.object(fusing, "_try", lambda *given: "it isn't wanted"):
        eager = cases.trained("sft", folder / "eager", **changes)
    assert not fused.FUSED
    cpu = cases.trained("sft", folder / "cpu", use_cpu=True, **changes)
    return seen | {"fused": ours.lines, "eager": eager.lines, "cpu": cpu.lines}


def loaded(folder: Path, failure: str | None, **fields: Any) -> dict[str, Any]:
    """What a policy's layers are found to be, and what is said of them, where a compiler fails in this way."""
    config = RunConfig(model=model_of(folder, "llama"), dataset="d", **{"bf16": True} | fields)
    patches = {
        None: contextlib.nullcontext(),
        "disabled": torch._dynamo.config.patch(disable=True),
        "forward": mock.patch.object(torch, "compile", raising(("normed", "product"), RuntimeError("no Triton here"))),
        "backward": mock.patch.object(torch, "compile", raising(("of_states",), AssertionError("a bad kernel"))),
        "compiler": mock.patch.object(torch, "compile", raising(("product",), FileNotFoundError("cc"))),
        "memory": mock.patch.object(
            torch, "compile", raising(("product",), torch.OutOfMemoryError("CUDA out of memory"))
        ),
        "numbers": mock.patch.object(fused, "of_gate_and_up", wrong),
        "limit": mock.patch.object(compiling, "KERNELS", 2),
    }
    with patches[failure]:
        policy = load_policy(config, tiny_tokenizer(), DEVICE)
    return {
        "fused": (policy.lean.fused_norms, policy.lean.fused_mlps),
        "lean": (policy.lean.lean_norms, policy.lean.lean_mlps),
        "notes": [note for note in policy.notes if "operation by operation" in note],
        "kept": {key[0] for key in fused.FUSED},
    }


def raising(names: tuple[str, ...], error: Exception) -> Callable[..., Any]:
    """`torch.compile`, of which functions of these names raise an error when they are called."""
    own = torch.compile

    def fail(*arguments: Any) -> Any:
        raise error

    return lambda function, **how: fail if function.__name__ in names else own(function, **how)


def wrong(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return grad * up, grad * gate


def memory_ran_out(folder: Path) -> str:
    try:
        loaded(folder, "memory")
    except torch.OutOfMemoryError as error:
        return str(error)
    return "nothing was raised"


TYPES = (torch.float32, torch.bfloat16)


def differences(device: torch.device = DEVICE) -> list[tuple[str, bool, float]]:
    """By how much the fused functions differ from operations one by one, relative to the largest value, for all types,
    forms and layouts: outputs and gradients. And whether something was rounded to bfloat16."""
    found, noise = [], torch.Generator().manual_seed(0)

    def made(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=noise).to(device, dtype).requires_grad_()

    def compare(name: str, key: Any, forward: Callable[..., torch.Tensor], states: Any, weights: list[Any]) -> None:
        results = []
        for keys in (set(), {key}):
            with mock.patch.object(fused, "FUSED", keys), counted() as calls:
                results.append(outcome(forward, states, weights))
            assert bool(calls) == bool(keys), "the other one ran"
        assert results[0][0].stride() == results[1][0].stride()
        for one, other in zip(*results, strict=True):
            assert one.dtype == other.dtype
            apart = (one.double() - other.double()).abs().max() / other.double().abs().max()
            narrow = torch.bfloat16 in [each.dtype for each in (states, *weights)]
            found.append((name, narrow, float(apart)))

    for states_type in TYPES:
        for weight_type in TYPES:
            for offset, first in ((0.0, True), (0.0, False), (1.0, False)):
                form, weight = norm.NormForm(1e-6, offset, first), made(16, dtype=weight_type)
                for name, states in {
                    "tokens": made(2, 9, 16, dtype=states_type),
                    "heads": made(1, 9, 4, 16, dtype=states_type),
                    "heads before tokens": made(1, 9, 4, 16, dtype=states_type)
                    .transpose(1, 2)
                    .detach()
                    .requires_grad_(),
                }.items():
                    if norm.fuses(states, weight, form):
                        continue
                    name = f"norm, {name}, {states_type}, {weight_type}, {form}"
                    key = fused.key_of_norm(states, weight, form)
                    compare(name, key, lambda x, w=weight, form=form: norm.norm(x, w, form), states, [weight])
    for dtype in TYPES:
        for name in gated.ACTIVATIONS:
            gate, up, both = made(1, 9, 24, dtype=dtype), made(1, 9, 24, dtype=dtype), made(9, 48, dtype=dtype)
            key = fused.key_of_product(gate, up, name)
            compare(f"{name}, {dtype}", key, lambda x, up=up, name=name: gated.gated(x, up, name), gate, [up])
            key = fused.key_of_product(*both.chunk(2, -1), name)
            compare(f"{name}, halves", key, lambda x, name=name: gated.gated(*x.chunk(2, -1), name), both, [])
    return found


def compiled_by(lengths: list[int]) -> list[int]:
    """How many kernels a norm's and a product's forward and backward pass compile at each of these lengths."""
    counts, form = [], norm.NormForm(1e-6, 0.0, True)
    weight = torch.ones(16, device=DEVICE, requires_grad=True)
    for length in lengths:
        before = graphs()
        heads, gate, up = (
            torch.ones(1, length, width, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
            for width in (64, 24, 24)
        )
        states = heads.view(1, length, 4, 16)
        keys = {fused.key_of_norm(states, weight, form), fused.key_of_product(gate, up, "silu")}
        with mock.patch.object(fused, "FUSED", keys), fused.of_any_size():
            with torch.autocast("cuda", torch.bfloat16):
                out = norm.norm(states, weight, form).sum() + gated.gated(gate, up, "silu").sum()
            out.backward()
            with torch.no_grad():
                norm.norm(states, weight, form)
                gated.gated(gate, up, "silu")
        counts.append(graphs() - before)
    return counts


def checkpointed_adapter(folder: Path) -> dict[str, Any]:
    return trained(folder, "qwen", use_peft=True, gradient_checkpointing=True)


def compiled_whole(folder: Path) -> dict[str, Any]:
    return loaded(folder, None, torch_compile=True)


def sizes() -> list[dict[str, int]]:
    """What a product of few elements calls, and one of many."""
    found = []
    for length in (fused.MANY // 64 - 1, fused.MANY // 64):
        gate, up = (torch.ones(1, length, 64, device=DEVICE, requires_grad=True) for _ in range(2))
        calls: Counter[str] = Counter()

        def run(function: Callable[..., Any], *arguments: Any, calls: Any = calls) -> Any:
            calls[function.__name__] += 1
            return function(*arguments)

        keys = {fused.key_of_product(gate, up, "relu")}
        with mock.patch.object(fused, "run", run), mock.patch.object(fused, "FUSED", keys):
            gated.gated(gate, up, "relu").sum().backward()
        found.append(dict(calls))
    return found
