"""Layers that keep less: recognised by what they compute, the same gradients, less kept, and nothing kept wrongly."""

from __future__ import annotations

import copy
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ft_host.batch import Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.models import load, load_policy
from ft_host.models.layout import FlatMask, Layout
from ft_host.models.lean import Found, make_lean, mlps, norms, parts, remaking
from ft_host.models.lean import norm as norm_module
from ft_host.models.lean.gated import ACTIVATIONS, Gated, gated
from ft_host.models.lean.norm import Norm, NormForm, norm
from ft_host.models.lean.rotary import turn
from ft_host.models.segments import per_segment
from ft_host.testing import models

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
LLAMA, GEMMA = NormForm(1e-6, 0.0, True), NormForm(1e-6, 1.0, False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


@pytest.fixture
def handles(monkeypatch) -> list[Any]:
    """What takes the place of each tensor that autograd saves."""
    made, own = [], remaking.pack

    def pack(tensor: torch.Tensor) -> Any:
        made.append(own(tensor))
        return made[-1]

    monkeypatch.setattr(remaking, "pack", pack)
    return made


def values_kept(handles: list[Any]) -> int:
    """Elements of the storages that are kept, but for the weights of linear layers."""
    storages = {
        handle.tensor.untyped_storage().data_ptr(): handle.tensor.untyped_storage().nbytes() // 4
        for handle in handles
        if isinstance(handle, remaking.Kept)
    }
    return sum(storages.values())


def randn(*shape: int, seed: int = 0, **given: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**given).requires_grad_()


def close(found: Any, expected: Any, most: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= most * other.norm()


# ---------------------------------------------------------------- the two functions


def written_out(states: torch.Tensor, weight: torch.Tensor | None, form: NormForm) -> torch.Tensor:
    unit = states.float() * torch.rsqrt(states.float().pow(2).mean(-1, keepdim=True) + form.eps)
    if weight is None:
        return unit.to(states.dtype)
    factor = weight + form.offset if form.offset else weight
    return factor * unit.to(states.dtype) if form.narrow_first else (factor * unit).to(states.dtype)


def test_a_norm_by_hand():
    weight = torch.tensor([1.0, 2.0])
    out = norm(torch.tensor([[3.0, 4.0]]), weight, NormForm(0.0, 0.0, True))
    assert torch.allclose(out, torch.tensor([[3.0, 8.0]]) / 12.5**0.5)
    assert torch.allclose(
        norm(torch.tensor([[3.0, 4.0]]), weight, NormForm(0.0, 1.0, False))[0, 0] / out[0, 0], 2 * weight[0]
    )


@pytest.mark.parametrize("form", [LLAMA, GEMMA, NormForm(1e-5, 0.0, False), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_has_the_gradients_of_autograd(form, dtype):
    states, weight = randn(2, 7, 16, dtype=dtype), None if form is None else randn(16, seed=1)
    form = form or NormForm(1e-6, 0.0, False)
    wanted = [states] if weight is None else [states, weight]
    slope = randn(2, 7, 16, seed=2).detach()
    results = [
        [out, *torch.autograd.grad(out, wanted, slope.to(out.dtype))]
        for out in (Norm.apply(states, weight, form), written_out(states, weight, form))
    ]
    close(*results, 1e-6 if dtype == torch.float32 else 2e-2)


def test_one_kernel_for_a_norm_where_torch_has_it(monkeypatch):
    """As on CUDA: what torch's kernels are to compute is written down in its decompositions."""
    from torch._decomp import decomposition_table

    calls = []

    def forward(states, shape, weight, eps):
        ratio = torch.rsqrt(states.float().pow(2).mean(-1, keepdim=True) + eps)
        calls.append("forward")
        return (states.float() * ratio * weight.float()).to(states.dtype), ratio

    def backward(*given):
        calls.append("backward")
        return decomposition_table[torch.ops.aten._fused_rms_norm_backward.default](*given)

    kernels = SimpleNamespace(_fused_rms_norm=forward, _fused_rms_norm_backward=backward)
    for form, dtypes in (
        (LLAMA, (torch.float32, torch.float32)),
        (GEMMA, (torch.float32, torch.float32)),
        (LLAMA, (torch.bfloat16, torch.bfloat16)),
        (LLAMA, (torch.float32, torch.bfloat16)),
        (LLAMA, (torch.bfloat16, torch.float32)),
    ):
        states, weight = randn(2, 7, 16, dtype=dtypes[0]), randn(16, seed=1, dtype=dtypes[1])
        slope = randn(2, 7, 16, seed=2).detach()
        results = []
        for kernel in (True, False):
            monkeypatch.setattr(norm_module, "has_kernel", lambda device, kernel=kernel: kernel)
            monkeypatch.setattr(norm_module, "aten", kernels)
            out = Norm.apply(states, weight, form)
            results.append([out, *torch.autograd.grad(out, [states, weight], slope.to(out.dtype))])
        close(*results, 2e-2 if torch.bfloat16 in dtypes else 1e-6)
    assert calls == ["forward", "backward"] * 4, "not with two types, one of which would be rounded"


def test_a_cpu_has_no_such_kernel_and_is_asked_by_name():
    assert not norm_module.has_kernel("cpu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gated_product_has_the_gradients_of_autograd(name):
    gate, up, slope = randn(3, 8), randn(3, 8, seed=1), randn(3, 8, seed=2).detach()
    own = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
    }[name]
    results = [
        [out, *torch.autograd.grad(out, [gate, up], slope)] for out in (Gated.apply(gate, up, name), own(gate) * up)
    ]
    close(*results)


def test_only_the_gradients_that_are_wanted():
    states, weight = randn(4, 8).detach(), randn(8)
    Norm.apply(states, weight, LLAMA).sum().backward()
    assert weight.grad is not None and states.grad is None
    gate = randn(4, 8).detach()
    up = randn(4, 8, seed=1)
    Gated.apply(gate, up, "silu").sum().backward()
    assert torch.allclose(up.grad, F.silu(gate)) and gate.grad is None


# ---------------------------------------------------------------- what is kept


def test_outputs_of_norms_and_products_are_not_kept(handles):
    """Of 10 tokens: a norm's input of 16 each and one number, gate and up of 24 each. The weights are 3 * 16 * 24."""
    states, weight = randn(1, 10, 16), randn(16)
    gate, up, down = (nn.Linear(*size, bias=False) for size in ((16, 24), (16, 24), (24, 16)))
    with remaking.remaking():
        inner = norm(states, weight, LLAMA)
        down(gated(gate(inner), up(inner), "silu")).sum().backward()
    assert values_kept(handles) == 10 * (16 + 1 + 2 * 24) + 16 + 3 * 16 * 24
    own = copy.deepcopy([gate, up, down])
    for module in own:
        module.zero_grad()
    inner = written_out(states, weight, LLAMA)
    own[2](F.silu(own[0](inner)) * own[1](inner)).sum().backward()
    close([m.weight.grad for m in (gate, up, down)], [m.weight.grad for m in own])


def test_casts_of_autocast_are_not_kept(handles):
    """Each of two layers would keep its own copy in bfloat16 of the norm's output in float32."""
    states, weight = randn(1, 10, 16), randn(16)
    layers = [nn.Linear(16, 4, bias=False) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16), remaking.remaking():
        inner = norm(states, weight, LLAMA)
        out = sum(layer(inner).float().sum() for layer in layers)
    remade = [handle for handle in handles if isinstance(handle, remaking.Remade)]
    assert [handle.types for handle in remade] == [[torch.float32, torch.bfloat16]] * 2
    assert torch.equal(remade[0].get(), inner.detach().bfloat16()[0])
    out.backward()
    expected = torch.ones(10, 4).bfloat16().t() @ inner.detach().bfloat16()[0]
    assert torch.equal(layers[0].weight.grad, expected.float())


def test_modules_of_other_forms_keep_less_too(handles):
    """A norm of torch's own, an MLP that isn't gated, and a gate that is written out."""
    layer, states = nn.LayerNorm(16), randn(1, 10, 16)
    wide, narrow = nn.Linear(16, 32), nn.Linear(32, 16)
    with remaking.remaking():
        out = narrow(F.gelu(wide(layer(states)), approximate="tanh"))
        out = narrow(F.silu(wide(out)) * wide(out * 1))
    remade = {type(handle.node).__name__ for handle in handles if isinstance(handle, remaking.Remade)}
    assert remade == {"NativeLayerNormBackward0", "GeluBackward0", "SiluBackward0", "MulBackward0"}
    out.sum().backward()
    found = [parameter.grad.clone() for module in (layer, wide, narrow) for parameter in module.parameters()]
    for module in (layer, wide, narrow):
        module.zero_grad()
    out = narrow(F.gelu(wide(layer(states)), approximate="tanh"))
    narrow(F.silu(wide(out)) * wide(out * 1)).sum().backward()
    close(found, [parameter.grad for module in (layer, wide, narrow) for parameter in module.parameters()])


def test_a_product_with_a_constant_is_kept():
    """Its factor isn't: nothing would make it again."""
    states = randn(4, 8)
    with remaking.remaking():
        out = (states * torch.full((8,), 2.0)).exp() @ torch.ones(8, 3).requires_grad_()
    out.sum().backward()
    assert torch.allclose(states.grad, 6 * (2 * states).exp())


def test_a_tensor_changed_in_place_is_refused():
    states = randn(4, 8)
    with remaking.remaking():
        squared = states * 1
        out = squared * squared
    squared.add_(1)
    with pytest.raises(RuntimeError, match=r"of \(4, 8\) .* changed in place: it is at version 1, and was saved at 0"):
        out.sum().backward()


def test_a_tensor_is_rounded_again_as_it_was(handles):
    """float32 to bfloat16 to float32: made again in float32 at once, it would not be what was used."""
    states, weight = randn(1, 10, 16), randn(16)
    layer = nn.Linear(16, 4, bias=False)
    with remaking.remaking():
        inner = norm(states, weight, LLAMA)
        out = layer(inner.bfloat16().float())
    (remade,) = (handle for handle in handles if isinstance(handle, remaking.Remade))
    assert remade.types == [torch.float32, torch.bfloat16, torch.float32]
    out.sum().backward()
    assert torch.equal(layer.weight.grad[0], inner.detach().bfloat16().float().sum((0, 1)))


def test_nothing_is_held_after_the_backward_pass():
    import gc
    import weakref

    states, weight, layer = randn(1, 10, 16), randn(16), nn.Linear(16, 4)
    with remaking.remaking():
        inner = norm(states, weight, LLAMA)
        out = layer(inner).exp()  # an output that its own node keeps
    seen = [weakref.ref(inner), weakref.ref(out), weakref.ref(inner.grad_fn)]
    gc.disable()
    try:
        del inner, out
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()


# ---------------------------------------------------------------- parts of an attention call


@pytest.fixture
def told():
    """As within a policy's forward pass, where attention calls tell what their tensors are made of."""
    with parts.asked(True):
        yield


def interleaved(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return states * cos + torch.stack((-states[..., 1::2], states[..., ::2]), -1).flatten(-2) * sin


def queries_of(turn: Any, normed: bool = True) -> torch.Tensor:
    """(1, heads, T, D) after a rotation, and a norm of ours before it."""
    states = randn(1, 5, 2 * 8).view(1, 5, 2, 8)
    states = (norm(states, randn(8, seed=1), LLAMA) if normed else states).transpose(1, 2)
    angles = 0.1 * torch.arange(5.0)[None, None, :, None] * torch.ones(8)
    return turn(states, angles.cos(), angles.sin())


def test_what_rotates_is_told_by_the_graph(told):
    queries = queries_of(turn)
    assert torch.equal(parts.rotation_of(queries).take(), queries)
    assert parts.rotation_of(queries_of(interleaved)) is None
    assert parts.rotation_of(queries_of(turn, normed=False)) is None
    assert parts.rotation_of(randn(1, 2, 5, 8)) is None


def test_rotated_queries_are_held_until_all_parts_were_taken(told):
    queries = queries_of(turn)
    found = parts.rotation_of(queries)  # which needs the graph of the queries
    with parts.attention_call() as call:
        call.rotated(queries, found)
        pieces = queries.split([2, 3], 2)
        call.cut(queries, pieces)
        cuts = [call.taken(piece) for piece in pieces]
    for _ in range(2):  # a second backward pass through the same graph
        assert torch.equal(cuts[0].get(), pieces[0]) and found.made is not None
        assert torch.equal(cuts[1].get(), pieces[1]) and found.made is None


def test_an_attention_call_keeps_its_inputs_and_its_output_alone(handles):
    """Two completions of a prompt: keys and values of the prompt are kept once, outputs as parts of the whole."""
    layout = Layout([4, 3, 2], [-1, 0, 0], CPU)
    query, key, value = (randn(1, heads, 9, 8, seed=heads) for heads in (4, 2, 1))
    value = value.expand(1, 2, 9, 8).contiguous()
    with remaking.remaking(), parts.attention_call():
        out = per_segment(query, key, value, FlatMask(layout, None), None, 0.0, None, None)
    of_softmax, masks = 9 * 4, 3 * 7 + 2 * 6  # one number a query and head
    assert values_kept(handles) == 9 * 8 * (4 + 2 + 2) + 9 * 8 * 4 + of_softmax + masks
    slope = randn(*out.shape, seed=9).detach()
    found = torch.autograd.grad(out, [query, key], slope)
    own = per_segment(query, key, value, FlatMask(layout, None), None, 0.0, None, None)
    close([out.detach(), *found], [own.detach(), *torch.autograd.grad(own, [query, key], slope)])


# ---------------------------------------------------------------- recognised


class Odd(nn.Module):
    """A gated MLP that scales its gate, which none of the known forms does."""

    def __init__(self, factor: float = 2.0, rate: float = 0.0, swapped: bool = False):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)
        self.out, self.drop = nn.Linear(6, 4), nn.Dropout(rate)
        self.factor, self.swapped = factor, swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, two = (self.two, self.one) if self.swapped else (self.one, self.two)
        return self.out(self.drop(F.silu(one(x)) * self.factor * two(x)))


class Square(nn.Module):
    """A gated MLP whose layers all have one size, the last of them named first."""

    def __init__(self):
        super().__init__()
        self.out, self.one, self.two = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.one(x), approximate="tanh") * self.two(x))


class LeftOutNorm(nn.Module):
    """Divides by the largest value."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps)


def test_what_an_mlp_computes_tells_its_form():
    assert mlps.form_of_mlp(Odd(1.0), CPU, torch.float32) == mlps.MlpForm("one", "two", "out", "silu")
    assert mlps.form_of_mlp(Odd(1.0, swapped=True), CPU, torch.float32) == mlps.MlpForm("two", "one", "out", "silu")
    assert mlps.form_of_mlp(Odd(2.0), CPU, torch.float32) is None
    assert mlps.form_of_mlp(Odd(1.0, rate=0.5), CPU, torch.float32) is None
    assert mlps.form_of_mlp(Odd(1.0, rate=0.5).eval(), CPU, torch.float32) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_forms_within_the_rounding_the_nearest_counts(dtype):
    """In bfloat16 both kinds of GELU are; and under autocast a model's own operations may round in another place."""
    form = mlps.MlpForm("one", "two", "out", "gelu_tanh")
    for mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            assert mlps.form_of_mlp(Square(), CPU, dtype) == form


@pytest.mark.parametrize("family", ["llama", "qwen", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lean_norm_gives_the_very_numbers_of_the_models_own(family, dtype):
    """Else losses would differ from those of other tools by more than what their own order of sums makes. Gradients
    have another order of sums, and are as near to the exact ones as products of matrices are."""
    module = next(module for module in models.FAMILIES[family]().modules() if norms.is_norm(module))
    form = norms.form_of_norm(module, CPU, {dtype})
    states = randn(3, 50, module.weight.numel(), dtype=dtype)
    ours, theirs = norm(states, module.weight, form), module(states)
    assert torch.equal(ours, theirs)
    if dtype == torch.float32:
        slope, wanted = randn(*ours.shape, seed=3).detach(), [states, module.weight]
        mine, own = (torch.autograd.grad(out, wanted, slope) for out in (ours, theirs))
        wide, weight = (tensor.detach().double().requires_grad_() for tensor in wanted)
        ratio = (wide.pow(2).mean(-1, keepdim=True) + form.eps).rsqrt()
        exact = torch.autograd.grad(wide * ratio * (weight + form.offset), [wide, weight], slope.double())
        for here, there, true in zip(mine, own, exact, strict=True):
            assert (here - true).norm() < 1e-6 * true.norm()
            torch.testing.assert_close(here, there)


@pytest.mark.parametrize(("family", "form"), [("llama", LLAMA), ("qwen", LLAMA), ("gemma", GEMMA)])
def test_what_a_norm_computes_tells_its_form(family, form):
    model = models.FAMILIES[family]()
    (found,) = {
        norms.form_of_norm(module, CPU, {torch.float32, torch.bfloat16})
        for module in model.modules()
        if norms.is_norm(module)
    }
    assert (found.offset, found.narrow_first) == (form.offset, form.narrow_first)
    assert found.eps == pytest.approx(model.config.rms_norm_eps)


def test_unknown_forms_stay_as_they_are_and_the_plan_says_so():
    model = nn.ModuleDict({"a": Odd(1.0), "b": Odd(2.0), "c": LeftOutNorm(), "d": nn.RMSNorm(4, eps=1e-5)})
    found = make_lean(model, CPU, "no")
    assert found == Found(2, 1, 2, 1, {"Odd", "LeftOutNorm"})
    assert {name for name, module in model.items() if "forward" in vars(module)} == {"a", "d"}
    (note,) = found.notes()
    assert note.startswith("1 of 2 norms and 1 of 2 gated MLPs are not of a known form")
    assert note.endswith("LeftOutNorm, Odd")
    assert Found(3, 3, 2, 2).notes() == []


def test_experts_of_an_unknown_gate_are_told_of_and_left_alone():
    """gpt-oss has gate and up in turn, and clamps them. The others are cut in halves."""
    model = models.tiny_gpt_oss()
    found = make_lean(model, CPU, "no")
    layers = model.config.num_hidden_layers
    assert (found.experts, found.lean_experts, found.others) == (layers, 0, {"GptOssExperts"})
    kind = "mixtures of experts are not of a known form, and keep more memory: GptOssExperts"
    assert found.notes() == [f"{layers} of {layers} {kind}"]
    assert not any("_apply_gate" in vars(module) for module in model.modules())
    known = make_lean(models.tiny_moe(), CPU, "no")
    assert known.experts == known.lean_experts > 0 and known.notes() == []


def test_experts_without_a_gate_are_none_of_it():
    model = models.tiny_moe()
    for module in model.modules():
        if "has_gate" in vars(module):
            module.has_gate = False
    assert make_lean(model, CPU, "no").experts == 0


def test_a_forward_that_somebody_exchanged_is_left_to_them():
    module = Odd(1.0)
    module.forward = MethodType(lambda self, x: self.out(self.one(x)), module)
    before = module.forward
    assert make_lean(module, CPU, "no") == Found() and module.forward == before


def test_float64_is_left_alone():
    assert make_lean(models.tiny_llama().double(), CPU, "no") == Found()


def test_neither_the_random_state_nor_the_weights_change():
    model = models.tiny_llama()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    make_lean(model, CPU, "bf16")
    after = model.state_dict()
    assert torch.equal(state, torch.get_rng_state()) and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------- whole models


def nll(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    return -values["logp"]


def step(policy: Any, precision: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 256, (length,), generator=generator).tolist() for length in (9, 17, 2, 12)]
    parents = [None, None, 1, 1]
    batch = flat_batch(
        [
            Segment(input_ids=ids, labels=ids, row=n, parent=p)
            for n, (ids, p) in enumerate(zip(rows, parents, strict=True))
        ],
        num_rows=4,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = policy(batch, loss=nll)
    out["loss"].backward()
    return [out["logp"].detach(), *(p.grad for p in policy.parameters() if p.grad is not None)]


CASES = {
    "llama": ("llama", {}),
    "gemma": ("gemma", {}),
    "gpt2": ("gpt2", {"disable_dropout": True}),
    "gpt_oss": ("gpt_oss", {}),
    "experts": ("moe", {}),
    "norms of queries and keys": ("qwen", {}),
    "a padded rectangle": ("qwen", {"segment_attention": "none"}),
    "checkpointing": ("qwen", {"gradient_checkpointing": True}),
    "an adapter": ("qwen", {"use_peft": True, "lora_target_modules": ["down_proj", "q_proj"], "lora_dropout": 0.0}),
    "autocast": ("qwen", {"bf16": True}),
    "autocast and an adapter": ("llama", {"bf16": True, "use_peft": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_policy_has_the_gradients_of_its_own_layers(saved, handles, case):
    family, fields = CASES[case]
    fields = {"gradient_checkpointing": False, **fields}
    results, sizes = [], []
    for lean in (False, True):
        patches = [] if lean else [mock.patch.object(load, "make_lean", lambda *given: Found())]
        patches += [] if lean else [mock.patch.object(remaking, "pack", remaking.Kept)]
        for patch in patches:
            patch.start()
        torch.manual_seed(0)
        policy = load_policy(RunConfig(model=str(saved(family)), **fields), TOKENIZER, CPU)
        results.append(step(policy, "bf16" if fields.get("bf16") else "no"))
        for patch in patches:
            patch.stop()
        assert lean or not any("forward" in vars(module) for module in policy.model.modules())
        sizes.append(policy.lean)
    close(results[1], results[0], 3e-2 if fields.get("bf16") else 1e-5)
    assert sizes[0] == Found()
    assert sizes[1].lean_norms == sizes[1].norms and sizes[1].lean_mlps == sizes[1].mlps
    assert any(isinstance(handle, remaking.Remade) for handle in handles)


def test_a_checkpointed_layer_is_made_once_in_the_forward_pass_and_once_more_for_the_backward_pass(saved):
    """To look at what a node of the graph has saved, as rotations are told by, would make it again at once."""
    config = RunConfig(model=str(saved("qwen")), gradient_checkpointing=True)
    policy, calls = load_policy(config, TOKENIZER, CPU), []
    layer = policy.causal_lm.model.layers[0]
    layer.input_layernorm.register_forward_pre_hook(lambda *given: calls.append(torch.is_grad_enabled()))
    batch = flat_batch([Segment(input_ids=[5, 6, 7, 8], labels=[5, 6, 7, 8], row=0)], num_rows=1)
    out = policy(batch, loss=nll)
    assert len(calls) == 1
    out["loss"].backward()
    assert len(calls) == 2


def test_the_lean_layers_are_not_saved_and_copies_are_their_own(saved, tmp_path):
    policy = load_policy(RunConfig(model=str(saved("llama"))), TOKENIZER, CPU)
    twin = copy.deepcopy(policy.causal_lm)
    layer = twin.model.layers[0].input_layernorm
    with torch.no_grad():
        layer.weight.zero_()
        assert not layer(torch.ones(1, 2, layer.weight.numel())).any()
        assert policy.causal_lm.model.layers[0].input_layernorm(torch.ones(1, 2, layer.weight.numel())).any()
    policy.model.save_pretrained(tmp_path)
    names = set(models.tiny_llama().state_dict()) - {"lm_head.weight"}
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "model.safetensors")) - {"lm_head.weight"} == names


def test_experts_join_gate_and_up():
    module = SimpleNamespace(act_fn=F.silu)
    module._apply_gate = lambda joined: F.silu(joined.chunk(2, -1)[1]) * joined.chunk(2, -1)[0]
    assert mlps.form_of_gate(module, CPU, torch.float32) == ("silu", False)
    module._apply_gate = lambda joined: F.silu(joined[..., ::2]) * joined[..., 1::2]
    assert mlps.form_of_gate(module, CPU, torch.float32) is None
