"""What a run is expected to take, before anything is loaded: weights by a config, what layers keep, what fits."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from ft_host.config import RunConfig
from ft_host.config.memory_plan import config_of_model, fit, held_by, memory_notes, memory_plan, room_mb
from ft_host.errors import ConfigError
from ft_host.models import load_policy
from ft_host.models.checkpointing import kept_by, sizes_of
from ft_host.models.lean import recognise
from ft_host.testing import models
from ft_host.util.memory import MB, peak_mb
from ft_host.util.model_sizes import counts_of
from ft_host.util.step_memory import Held, Kept, kept_by_layer, step_bytes

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "tie_word_embeddings": False,
}


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_memory", ROOT / "docs" / "generate_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("name", ["llama", "qwen", "mistral", "gemma", "moe"])
def test_matrices_are_counted_from_the_config_alone(name):
    model = getattr(models, f"tiny_{name}")()
    counts = counts_of(model.config.to_dict())
    found = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert counts.all - counts.vectors == found


def test_published_models_have_the_published_numbers_of_weights():
    published = {
        "Qwen3-0.6B": 596_049_920,
        "Qwen3-1.7B": 1_720_574_976,
        "Qwen3-8B": 8_190_735_360,
        "Qwen3-32B": 32_762_123_264,
        "Llama-3.3-70B": 70_553_706_496,
    }
    for name, fields in generator().MODELS.items():
        assert counts_of(fields).all == pytest.approx(published[name], rel=2e-5), name


def test_an_adapter_is_counted_as_peft_makes_it():
    model = models.tiny_llama()
    counts = counts_of(model.config.to_dict())
    for names in (["q_proj", "down_proj"], None):
        adapted = get_peft_model(models.tiny_llama(), LoraConfig(r=4, target_modules=names or "all-linear"))
        assert counts.adapter(4, names) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("fields", [{"kv_lora_rank": 512}, {"layer_types": ["linear_attention"]}, {"vocab_size": None}])
def test_what_has_other_layers_isnt_counted(fields):
    assert counts_of(LLAMA_8B | fields) is None


def test_types_of_weights_are_those_that_a_run_holds():
    counts = counts_of(LLAMA_8B)
    matrices, ends = counts.matrices, counts.embeddings
    assert held_by(counts, RunConfig(), 2).weights == 4 * counts.all == held_by(counts, RunConfig(), 2).trained
    assert held_by(counts, RunConfig(), 2).copies == 2 * (counts.all - ends)  # what is looked up isn't cast
    assert held_by(counts, RunConfig(dtype="bfloat16"), 2).copies == 0
    lora = held_by(counts, RunConfig(use_peft=True, lora_r=8), 2)
    assert lora.trained == 4 * counts.adapter(8) and lora.weights == 2 * counts.all + lora.trained
    assert held_by(counts, RunConfig(use_peft=True, bf16=False), 4).weights > 4 * counts.all
    packed = held_by(counts, RunConfig(use_peft=True, lora_r=8, load_in_4bit=True), 2)
    assert packed.weights == 2 * (counts.all - matrices) + 0.5625 * matrices + lora.trained
    assert packed.copies == 2 * 4096 * 14336


# ---------------------------------------------------------------- what layers keep


@pytest.fixture(scope="module")
def saved_tensors(tmp_path_factory) -> Any:
    """`saved_tensors(lean, fields)`: bytes that autograd saves of a token and layer, as the benchmark finds them, and
    how the layers compute. What is saved once a model, and what doesn't grow with tokens, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        benchmark = importlib.import_module("saved_tensors")
        sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}
        for name, size in sizes.items():
            patch.setitem(benchmark.SIZES, name, size)
        patch.setitem(benchmark.FAMILIES, "qwen3", {"head_dim": 64})
        for name, length in (("short", 50), ("long", 100)):
            patch.setitem(benchmark.SHAPES, name, ([length] * 4, [None] * 4))
        folder = tmp_path_factory.mktemp("kept")
        benchmark.made_model(folder, "qwen3")

        def found(lean: bool, fields: dict[str, Any]) -> tuple[float, Kept, Any]:
            short, long = (benchmark.kept(folder, shape, lean, fields) for shape in ("short", "long"))
            grows = {
                kind: 2 * long[kind] - short[kind] for kind in long if kind not in ("model.norm", "lora_B.default")
            }
            config = RunConfig(model=str(folder), **fields)
            policy = load_policy(config, AutoTokenizer.from_pretrained(folder), CPU)
            return sum(grows.values()), kept_by(policy, config), sizes_of(policy.config)

        yield found


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "own"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"bf16": True}, {"bf16": True, "dtype": "bfloat16"}, {"bf16": True, "use_peft": True}, {"use_peft": True}],
    ids=lambda fields: " ".join(fields) or "float32",
)
def test_what_a_layer_keeps_is_what_autograd_saves(saved_tensors, fields, lean):
    found, how, shape = saved_tensors(lean, fields)
    assert how.norms and how.mlps and how.segments and how.adapter == ("use_peft" in fields)
    assert (how.width, how.states) == {(): (4, 4), ("bf16",): (2, 4), ("use_peft",): (4, 4)}.get(tuple(fields), (2, 2))
    assert kept_by_layer(shape, dataclasses.replace(how, norms=lean, mlps=lean)) == pytest.approx(found, rel=0.08)


@pytest.mark.parametrize(
    ("unknown", "norms", "mlps"),
    [("form_of_norm", False, True), ("form_of_mlp", True, False)],
    ids=["norms", "gated MLPs"],
)
@pytest.mark.parametrize("fields", [{}, {"bf16": True, "use_peft": True}], ids=["float32", "an adapter in bfloat16"])
def test_what_is_unknown_is_counted_by_its_kind(saved_tensors, monkeypatch, unknown, norms, mlps, fields):
    """Not below what autograd saves, and below what layers keep that are a model's own in all."""
    monkeypatch.setattr(recognise, unknown, lambda *given: None)
    found, how, shape = saved_tensors(True, fields)
    assert (how.norms, how.mlps) == (norms, mlps)
    own = kept_by_layer(shape, dataclasses.replace(how, norms=False, mlps=False))
    assert found < 1.01 * kept_by_layer(shape, how) < 0.9 * own


def test_experts_of_an_unknown_gate_count_as_a_models_own(tmp_path):
    folder = models.save_tiny(tmp_path, models.tiny_gpt_oss(), TOKENIZER)
    config = RunConfig(model=str(folder))
    how = kept_by(load_policy(config, TOKENIZER, CPU), config)
    assert how.norms and not how.mlps


def test_compiled_layers_count_as_a_models_own(tmp_path):
    folder = models.save_tiny(tmp_path, models.tiny_llama(), TOKENIZER)
    lean, compiled = (RunConfig(model=str(folder), torch_compile=each) for each in (False, True))
    policy = load_policy(lean, TOKENIZER, CPU)
    assert kept_by(policy, lean).norms and kept_by(policy, lean).mlps
    assert not kept_by(policy, compiled).norms and not kept_by(policy, compiled).mlps
    of = [memory_plan(LLAMA_8B, dataclasses.replace(each, use_cpu=False))["activations"] for each in (lean, compiled)]
    assert of[1] > 1.3 * of[0]


# ---------------------------------------------------------------- a step


def test_a_share_of_a_sharded_model_and_whole_layers_of_it():
    shape = counts_and_shape()[1]
    kept = Kept(width=2, states=2, norms=True, mlps=True)
    usual = {"tokens": 0, "optim": "adamw", "largest": 0, "logits": 0}
    alone = step_bytes(Held(weights=64, trained=64), shape, kept, **usual)
    assert alone == {"weights": 64, "gradients": 64, "optimizer": 128, "activations": 0, "logits": 0}
    assert step_bytes(Held(weights=64, trained=64), shape, kept, buckets=True, **usual)["gradients"] == 128
    share = step_bytes(Held(weights=16, trained=16, layer=10, ends=6), shape, kept, **usual)
    # two layers and the ends; the gradients of one and of the ends, in 2 bytes and in 4
    assert share["activations"] == 2 * 10 + 6 + 3 * (10 + 6)


def counts_and_shape() -> Any:
    from ft_host.util.model_sizes import model_sizes_of

    return counts_of(LLAMA_8B), model_sizes_of(LLAMA_8B)


def test_a_plan_of_8_billion_weights_by_hand():
    """Full, in float32, on one card: 16 bytes a weight, and 2 for autocast's copy of each matrix."""
    counts, _ = counts_and_shape()
    parts = memory_plan(LLAMA_8B, RunConfig(gradient_checkpointing=True))
    assert parts["weights"] == parts["gradients"] == parts["optimizer"] / 2 == 4 * counts.all / MB
    tokens = 8 * 1024
    layer = tokens * (2 * (3 * 4096 + 2 * 1024 + 4 * 14336) + 4 * 4 * 4096 + 2 * 5 * 4096)
    expected = 32 * tokens * 4 * 4096 + layer + tokens * 2 * (14 * 4096 + 4 * 14336)
    assert parts["activations"] == (expected + 2 * (counts.all - counts.embeddings)) / MB
    four = memory_plan(LLAMA_8B, RunConfig(distributed_strategy="fsdp2"), processes=4)
    assert four["weights"] == parts["weights"] / 4


def test_the_first_setting_that_fits_is_the_mildest():
    checkpointing = {"gradient_checkpointing": True}
    one_row = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}  # the step keeps its size
    lora, full = RunConfig(use_peft=True), RunConfig()
    assert fit(LLAMA_8B, lora, 80).changes == {}
    assert fit(LLAMA_8B, lora, 24).changes == checkpointing | one_row
    assert fit(LLAMA_8B, RunConfig(use_peft=True, load_in_4bit=True), 24).changes == checkpointing
    assert fit(LLAMA_8B, full, 80).changes == checkpointing | {"dtype": "bfloat16"}
    several = fit(LLAMA_8B, full, 80, most_cards=8)
    sharded = {"distributed_strategy": "fsdp2", "num_processes": 2}
    assert several.changes == checkpointing | sharded | one_row
    assert several.megabytes <= room_mb(80) < peak_mb(memory_plan(LLAMA_8B, full))
    assert fit(LLAMA_8B, full, 24) is None


def test_the_table_of_the_docs_is_written_from_the_estimate():
    module = generator()
    assert module.PAGE.read_text(encoding="utf-8") == module.generate(), "run: python docs/generate_memory.py"


# ---------------------------------------------------------------- a dry run


def test_a_dry_run_says_what_is_taken_and_which_card_it_fits(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA_8B}))
    config = RunConfig(model=str(tmp_path), use_peft=True)
    assert config_of_model(config) == LLAMA_8B
    [said] = memory_notes(config, 1)
    assert said.startswith("memory on a GPU: about ") and said.endswith("; fits a card of 80 GB")
    [said] = memory_notes(RunConfig(model=str(tmp_path)), 1)
    assert "doesn't fit a card of 141 GB; it would with gradient_checkpointing: true, dtype: bfloat16" in said
    assert memory_notes(RunConfig(model=str(tmp_path), use_cpu=True), 1) == []


def test_a_dry_run_of_a_model_that_isnt_here_asks_nobody(tmp_path):
    for name in ("nobody/nothing", str(tmp_path)):
        assert memory_notes(RunConfig(model=name), 1) == [
            "memory: known once the model is loaded (its config.json isn't on this machine)"
        ]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json: not JSON: "):
        memory_notes(RunConfig(model=str(tmp_path)), 1)


def test_a_plan_and_a_loaded_run_agree(tmp_path):
    """The same model, counted from its config and from its weights."""
    model = models.tiny_llama(hidden_size=128, intermediate_size=384)
    folder = models.save_tiny(tmp_path, model, TOKENIZER)
    for fields in ({"bf16": True}, {"bf16": True, "use_peft": True}):
        config = RunConfig(model=str(folder), **fields)
        parts = memory_plan(model.config.to_dict(), config)
        policy = load_policy(config, TOKENIZER, CPU)
        held = sum(p.nbytes for p in policy.parameters()) / MB
        assert parts["weights"] == pytest.approx(held, rel=0.01) and peak_mb(parts) > held
        trained = sum(p.nbytes for p in policy.parameters() if p.requires_grad) / MB
        assert parts["gradients"] == pytest.approx(trained, rel=0.01)
