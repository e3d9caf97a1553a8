"""Rotary positions in fewer passes: the rotation and its gradient, which functions it takes the place of, and where."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.phi3 import modeling_phi3
from transformers.models.qwen3 import modeling_qwen3

from ft_host.models.lean import make_lean, rotary
from ft_host.testing import models

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def given(states: torch.dtype = F32, angles: torch.dtype = F32) -> list[torch.Tensor]:
    """Queries (1, 4, 6, 8) and keys (1, 2, 6, 8), laid out as models have them, cosines and sines (1, 6, 8)."""
    q, k = (randn(1, 6, heads, 8, seed=heads, dtype=states).transpose(1, 2).requires_grad_() for heads in (4, 2))
    return [q, k, *(randn(1, 6, 8, seed=seed, dtype=angles) for seed in (8, 9))]


# The model's own, whatever other tests of the process have made lean.
_, QWEN = rotary.rotation_of_class(modeling_qwen3.Qwen3Attention)


def with_gradients(made: tuple[torch.Tensor, ...], q: torch.Tensor, k: torch.Tensor) -> list[torch.Tensor]:
    slopes = [randn(*each.shape, seed=3, dtype=each.dtype) for each in made]
    return [*(each.detach() for each in made), *torch.autograd.grad(made, [q, k], slopes)]


def turned(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rotary.turn(q, cos[:, None], sin[:, None]), rotary.turn(k, cos[:, None], sin[:, None])


# ---------------------------------------------------------------- the rotation


def test_a_quarter_turn_and_a_half_turn():
    """Of pairs (x1, x2) it makes (x1 cos - x2 sin, x2 cos + x1 sin)."""
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])[None, None]
    cos, sin = torch.tensor([[0.0] * 4, [-1.0] * 4])[None, None], torch.tensor([[1.0] * 4, [0.0] * 4])[None, None]
    assert rotary.turned(states, cos, sin).tolist() == [[[[-3, -4, 1, 2], [-1, -2, -3, -4]]]]
    assert rotary.turned(states, cos, sin, backward=True).tolist() == [[[[3, 4, -1, -2], [-1, -2, -3, -4]]]]


def test_its_gradient_is_that_of_finite_differences():
    states, cos, sin = randn(1, 2, 3, 4, dtype=torch.float64), *(randn(1, 1, 3, 4, seed=s).double() for s in (1, 2))
    assert torch.autograd.gradcheck(rotary.Turned.apply, (states.requires_grad_(), cos, sin))


@pytest.mark.parametrize(("states", "angles"), itertools.product((F32, BF16), (F32, BF16)))
def test_it_gives_the_numbers_of_a_models_own(states, angles):
    parts = given(states, angles)
    ours, theirs = (with_gradients(function(*parts), *parts[:2]) for function in (turned, QWEN))
    assert [each.dtype for each in ours] == [each.dtype for each in theirs]
    assert [each.stride() for each in ours] == [each.stride() for each in theirs]
    assert all(map(torch.equal, ours[:2], theirs[:2]))  # to the bit, as norms
    tolerance = 1e-6 if states == angles == F32 else 2e-2
    for here, there in zip(ours[2:], theirs[2:], strict=True):
        torch.testing.assert_close(here, there, rtol=tolerance, atol=tolerance)


def test_it_keeps_cosines_and_sines_alone():
    q, _, cos, sin = given()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
        rotary.turn(q, cos[:, None], sin[:, None])
    assert kept == [(1, 1, 6, 8)] * 2


# ---------------------------------------------------------------- what it takes the place of


@pytest.mark.parametrize("family", models.FAMILIES)
def test_attention_is_known_by_what_its_rotation_computes(family):
    model = models.FAMILIES[family]()
    layers = model.config.num_hidden_layers
    rotates = family not in ("gpt2", "mamba", "gpt_oss")  # gpt-oss has angles of half a head
    assert make_lean(model, CPU, "bf16").lean_rotations == (layers if rotates else 0)


@pytest.mark.parametrize("module", [modeling_cohere, modeling_gpt_oss])
def test_another_rotation_isnt_ours(module):
    """Cohere's pairs are neighbours."""
    assert not rotary.is_rotation(module.apply_rotary_pos_emb, CPU, {F32})
    assert rotary.is_rotation(QWEN, CPU, {F32, BF16})


def test_a_wrong_gradient_isnt_ours():
    def detached(q, k, cos, sin, unsqueeze_dim=1):
        out = QWEN(q, k, cos, sin, unsqueeze_dim)
        return out[0], out[1].detach() + k - k.detach()

    assert not rotary.is_rotation(detached, CPU, {F32})


def test_a_forward_without_such_a_function_is_left_alone():
    assert rotary.rotation_of_class(nn.Linear) is None
    assert rotary.rotation_of_class(modeling_qwen3.Qwen3MLP) is None
    names, own = rotary.rotation_of_class(modeling_qwen3.Qwen3Attention)
    assert names is vars(modeling_qwen3) and own is QWEN
    rotary.lean_attention(modeling_qwen3.Qwen3Attention, names, own)
    rotary.lean_attention(modeling_qwen3.Qwen3Attention, names, own)  # exchanged once
    assert names["apply_rotary_pos_emb"].__wrapped__ is own
    assert rotary.rotation_of_class(modeling_qwen3.Qwen3Attention) == (names, own)


# ---------------------------------------------------------------- where


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Who rotated, call by call: "own" or "lean"."""
    seen: list[str] = []

    def own(q, k, cos, sin, unsqueeze_dim=1):
        seen.append("own")
        return QWEN(q, k, cos, sin, unsqueeze_dim)

    def turn(*given: torch.Tensor, made: Any = rotary.turn) -> torch.Tensor:
        seen.append("lean")
        return made(*given)

    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", own)
    monkeypatch.setattr(rotary, "turn", turn)
    return seen


def rows() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(3, 15)[None]}


def made() -> nn.Module:
    torch.manual_seed(0)
    return modeling_qwen3.Qwen3ForCausalLM(modeling_qwen3.Qwen3Config(**SMALL, head_dim=8))


def test_models_of_the_family_that_arent_lean_keep_their_own(calls):
    lean, other = made(), made()
    make_lean(lean, CPU, "no")
    calls.clear()
    ours = lean(**rows()).logits
    assert set(calls) == {"lean"}
    calls.clear()
    theirs = other(**rows()).logits
    assert set(calls) == {"own"}
    torch.testing.assert_close(ours, theirs)
    calls.clear()
    modeling_qwen3.apply_rotary_pos_emb(*given())
    assert calls == ["own"]


def test_after_an_error_in_a_layer_nothing_is_lean(calls):
    model = made()
    make_lean(model, CPU, "no")
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**rows())
    calls.clear()
    modeling_qwen3.apply_rotary_pos_emb(*given())
    assert calls == ["own"]


def test_angles_of_a_part_of_each_head_are_left_to_the_models_own():
    """Phi-3's function passes on what isn't rotated; of whole heads it is like all others."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    torch.manual_seed(0)
    plain = modeling_phi3.Phi3ForCausalLM(modeling_phi3.Phi3Config(**SMALL, rope_parameters=rope, pad_token_id=0))
    lean = copy.deepcopy(plain)
    assert make_lean(lean, CPU, "no").lean_rotations == 2
    torch.testing.assert_close(lean(**rows()).logits, plain(**rows()).logits)


def test_lean_layers_that_are_checkpointed_have_the_same_gradients():
    """What is made again in the backward pass is what was made before, whoever asks."""
    plain, lean, again = made(), made(), made()
    for model in (lean, again):
        make_lean(model, CPU, "no")
    again.train().gradient_checkpointing_enable({"use_reentrant": False})
    for model in (plain, lean, again):
        model(**rows()).logits.square().sum().backward()
    for one, two, three in zip(plain.parameters(), lean.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5)
        assert torch.equal(two.grad, three.grad)
