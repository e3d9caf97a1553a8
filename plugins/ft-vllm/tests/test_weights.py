"""What is sent is what a checkpoint holds, whatever the model looks like in memory."""

from __future__ import annotations

import pytest
import torch
from ft_vllm import weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from ft_host.api import ConfigError, Policy
from ft_host.testing import disturb, tiny_gpt2, tiny_llama, tiny_moe, tiny_qwen


def sent(policy: Policy) -> dict[str, torch.Tensor]:
    return dict(pair for piece in weights.pieces(policy, weights.manifest_of(policy), keep=True) for pair in piece)


def adapted(model, **fields) -> PeftModel:
    torch.manual_seed(0)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **fields}
    peft = get_peft_model(model, LoraConfig(**fields))
    disturb(peft)
    return peft


def assert_equal(found: dict, expected: dict, **near) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, **near)


@pytest.mark.parametrize("make", [tiny_qwen, tiny_llama, tiny_gpt2, tiny_moe])
def test_names_and_layout_are_those_of_the_files(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    policy = Policy(model)
    found, files = sent(policy), load_file(tmp_path / "model.safetensors")
    assert_equal(found, files, rtol=0, atol=0)
    manifest = weights.manifest_of(policy)
    assert manifest.names == list(found)
    assert manifest.shapes == [list(weight.shape) for weight in found.values()]
    assert manifest.dtype_names == ["float32"] * len(found)


def test_pieces_are_cut_as_vllm_cuts_them(monkeypatch):
    assert weights.bounds_of([4, 4, 4, 20, 1], 8) == [[0, 3], [3, 4], [4, 5]]
    assert weights.bounds_of([4, 4], 8) == [[0, 2]]
    policy = Policy(tiny_llama())
    whole = sent(policy)
    monkeypatch.setattr(weights, "PIECE", 40_000)
    manifest = weights.manifest_of(policy)
    pieces = list(weights.pieces(policy, manifest, keep=True))
    assert len(pieces) == len(manifest.bounds) > 5
    assert [len(piece) for piece in pieces] == [end - start for start, end in manifest.bounds]
    assert_equal(dict(pair for piece in pieces for pair in piece), whole, rtol=0, atol=0)
    assert list(weights.pieces(policy, manifest, keep=False)) == []


@pytest.mark.parametrize("make", [tiny_qwen, tiny_llama])
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_an_adapter_is_merged_as_peft_merges_it(make, fields):
    peft = adapted(make(), **fields)
    found = sent(Policy(peft))
    assert_equal(found, dict(peft.merge_and_unload().named_parameters()), rtol=1e-5, atol=1e-6)


def test_matrices_are_sent_in_the_type_of_the_engine_and_vectors_as_they_are_held():
    model = tiny_qwen()
    policy, held = Policy(model), dict(model.named_parameters())
    manifest = weights.manifest_of(policy, torch.bfloat16)
    found = dict(pair for piece in weights.pieces(policy, manifest, keep=True) for pair in piece)
    types = dict(zip(manifest.names, manifest.dtype_names, strict=True))
    assert {name: str(weight.dtype).removeprefix("torch.") for name, weight in found.items()} == types
    assert {weight.dtype for weight in found.values() if weight.dim() > 1} == {torch.bfloat16}
    for name, weight in found.items():
        expected = held[name].bfloat16() if weight.dim() > 1 else held[name]
        assert torch.equal(weight, expected), name
    assert sum(manifest.sizes) < 0.51 * sum(weights.manifest_of(policy).sizes)


def test_an_adapter_is_added_to_a_base_in_bfloat16_before_it_is_rounded():
    peft = adapted(tiny_qwen())
    for parameter in peft.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    found = sent(Policy(peft))["model.layers.0.self_attn.q_proj.weight"]
    layer = peft.get_base_model().model.layers[0].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight.float() + layer.scaling["default"] * (up @ down)
    assert torch.equal(found, expected.bfloat16())


def test_modules_trained_in_full_are_part_of_it():
    peft = adapted(tiny_llama(), modules_to_save=["lm_head"])
    found = sent(Policy(peft))
    assert_equal(found, dict(peft.merge_and_unload().named_parameters()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, fields, says",
    [
        (tiny_qwen, {"target_modules": ["q_proj", "lm_head"]}, "can't change lm_head alone"),
        (tiny_qwen, {"use_dora": True}, "the kind of LoRA that model.layers.0.self_attn.q_proj has"),
        (tiny_llama, {"target_modules": ["embed_tokens"]}, "model.embed_tokens has peft's Embedding"),
    ],
)
def test_what_can_not_be_merged_is_refused(make, fields, says):
    with pytest.raises(ConfigError, match=says):
        weights.manifest_of(Policy(adapted(make(), **fields)))


def test_an_adapter_is_written_as_peft_writes_it(tmp_path):
    model = tiny_qwen()
    peft = adapted(model)
    policy = Policy(peft)
    assert weights.check_adapter(policy) == 4
    weights.write_adapter(policy, tmp_path / "ours", keep=True)
    peft.save_pretrained(tmp_path / "pefts")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "pefts")]
    assert_equal(*files, rtol=0, atol=0)
    again = PeftModel.from_pretrained(tiny_qwen(), tmp_path / "ours")
    ids = torch.arange(20, 40)[None]
    torch.testing.assert_close(again.eval()(ids).logits, peft.eval()(ids).logits)
    assert not peft.peft_config["default"].inference_mode
    weights.write_adapter(policy, tmp_path / "nothing", keep=False)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"modules_to_save": ["lm_head"]}, "lora_modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "a base that it changed .init_lora_weights: pissa."),
        ({"init_lora_weights": "olora"}, "a base that it changed .init_lora_weights: olora."),
        ({"bias": "all"}, "a bias"),
    ],
)
def test_an_adapter_that_vllm_refuses_is_refused_first(fields, says):
    with pytest.raises(ConfigError, match=f"{says}.*set lora: merged"):
        weights.check_adapter(Policy(adapted(tiny_llama(), **fields)))
