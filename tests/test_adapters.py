"""LoRA: what peft refuses is refused by name, adapters that are trained further, and the reference of one that changed
its base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_sft.config import SFTConfig
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ft_host.config.resolve import resolve
from ft_host.data import load_tokenizer
from ft_host.errors import ConfigError
from ft_host.models import load_policy, merge_adapter, save_model
from ft_host.models.adapter_folder import check_same
from ft_host.models.aux_models import keep_adapter
from ft_host.testing import models
from ft_host.types import ModelSpec

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
ROWS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Folders of tiny models: llama, mamba, moe."""
    root = tmp_path_factory.mktemp("adapters")
    for name in ("llama", "mamba", "moe"):
        models.save_family(root, name)
    return root


def config_of(model: Path | str, **fields: Any) -> SFTConfig:
    return SFTConfig(model=str(model), dataset="rows.jsonl", use_peft=True, **fields)


def adapter_at(folder: Path, base: Path, settings: LoraConfig) -> Path:
    """An adapter as peft alone writes it, its tensors disturbed; no tokenizer beside it."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    models.disturb(model)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def plain(root, tmp_path) -> Path:
    targets = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return adapter_at(tmp_path / "adapter", root / "llama", LoraConfig(r=4, lora_alpha=8, **targets))


def told(folder: Path, **fields: Any) -> Path:
    """The folder with other settings in adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


# ---------------------------------------------------------------- what peft takes


def test_all_linear_leaves_out_what_peft_refuses_and_says_so(root, tmp_path):
    policy = load_policy(config_of(root / "mamba"), TOKENIZER, CPU)
    trained = {name.split(".")[-4] for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {"in_proj", "x_proj"}
    assert any("all-linear leaves out out_proj, which peft doesn't take" in note for note in policy.notes)
    assert any("dt_proj (2 modules): no text would go through an adapter there" in note for note in policy.notes)
    models.disturb(policy)
    save_model(policy, tmp_path)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "mamba"), tmp_path)
        torch.testing.assert_close(loaded(ROWS).logits, policy.model(ROWS).logits, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="no text goes through 4 of the adapter's tensors, .*dt_proj.lora_A"):
        load_policy(config_of(root / "mamba", lora_target_modules=["x_proj", "dt_proj"]), TOKENIZER, CPU)


def test_all_linear_says_that_it_leaves_out_fused_experts(root):
    policy = load_policy(config_of(root / "moe"), TOKENIZER, CPU)
    assert any("lora_target_parameters: [mlp.experts.down_proj, mlp.experts.gate_up_proj]" in n for n in policy.notes)


def test_adapters_on_fused_experts(root, tmp_path):
    fields = {"lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_r": 2}
    policy = load_policy(config_of(root / "moe", **fields), TOKENIZER, CPU)
    assert not any("leaves out" in note for note in policy.notes)
    models.disturb(policy)
    save_model(policy, tmp_path / "adapter")
    with torch.no_grad():
        ours = policy.model(ROWS).logits
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "moe"), tmp_path / "adapter")
        torch.testing.assert_close(loaded(ROWS).logits, ours, rtol=1e-5, atol=1e-5)
        assert (AutoModelForCausalLM.from_pretrained(root / "moe")(ROWS).logits - ours).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model", "fields", "match"),
    [
        ("llama", {"lora_target_modules": ["mlp"]}, "mlp is a LlamaMLP, .*: down_proj, gate_proj, up_proj"),
        ("mamba", {"lora_target_modules": ["out_proj"]}, "can't put LoRA on out_proj, a Linear: .*incompatible"),
        ("llama", {"lora_target_modules": ["q_prjo"]}, "no module q_prjo; did you mean q_proj"),
        (
            "llama",
            {"lora_target_modules": [r".*\.self_atn\.q_proj"]},
            "matches the full name of no module; one is model",
        ),
        ("llama", {"lora_target_modules": [r"(q_proj"]}, "is not a regular expression"),
        ("moe", {"lora_target_parameters": ["experts.gate_proj"]}, "no parameter experts.gate_proj"),
        (
            "moe",
            {"lora_target_parameters": ["mlp.experts.gate_up_proj"], "lora_dropout": 0.1},
            "lora_target_parameters: peft refuses this: .*dropout",
        ),
    ],
)
def test_what_peft_refuses_is_refused_before_weights_are_read(root, tmp_path, model, fields, match):
    shutil.copy(root / model / "config.json", tmp_path)
    save_file({"no.weight": torch.zeros(1)}, tmp_path / "model.safetensors")  # it would be refused if it were loaded
    with pytest.raises(ConfigError, match=match):
        load_policy(config_of(tmp_path, **fields), TOKENIZER, CPU)


def test_targets_by_a_regular_expression(root):
    policy = load_policy(config_of(root / "llama", lora_target_modules=[r"model\.layers\.0\..*_proj"]), TOKENIZER, CPU)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 14 and all(".layers.0." in name for name in trained)


# ---------------------------------------------------------------- DoRA


def test_dora_is_pefts_and_starts_as_its_base(root, tmp_path):
    policy = load_policy(config_of(root / "llama", use_dora=True, lora_r=4), TOKENIZER, CPU)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(root / "llama")
        torch.testing.assert_close(policy.model(ROWS).logits, base(ROWS).logits, rtol=1e-5, atol=1e-5)
    models.disturb(policy)
    save_model(policy, tmp_path / "adapter")
    merge_adapter(config_of(root / "llama"), tmp_path / "adapter", tmp_path / "merged")
    with torch.no_grad():
        ours = policy.model(ROWS).logits
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(ROWS).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ROWS).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged, ours, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["use_dora"] is True


# ---------------------------------------------------------------- an adapter that is trained further


def test_its_fields_are_its_own_in_the_config_and_the_record(tiny, plain, tmp_path):
    config = config_of(told(plain, base_model_name_or_path=str(tiny / "model")), lora_alpha=8)
    config = dataclasses.replace(config, dataset=str(tiny / "train.jsonl"), output_dir=str(tmp_path / "run"))
    config = dataclasses.replace(config, max_steps=1, progress="quiet", per_device_train_batch_size=2)
    resolved = resolve(SFTConfig, None, {name: value for name, value in vars(config).items() if name in GIVEN})
    assert (resolved.config.lora_r, resolved.config.lora_alpha) == (4, 8)
    assert resolved.origins["lora_r"] == f"the adapter {plain}"
    assert sorted(resolved.config.lora_target_modules) == ["q_proj", "v_proj"]


GIVEN = ("model", "dataset", "use_peft", "lora_alpha", "output_dir", "max_steps", "progress")


@pytest.mark.parametrize(
    "given",
    [
        {"lora_r": 16},
        {"lora_alpha": 32},
        {"lora_dropout": 0.1},
        {"lora_target_modules": ["q_proj"]},
        {"lora_modules_to_save": ["lm_head"]},
        {"use_rslora": True},
        {"use_dora": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_other_fields_are_refused_as_without_effect(plain, tmp_path, given):
    """Also those that are given as the default is: a default that isn't given is not compared."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n')
    fields = {"model": str(plain), "dataset": str(rows), "use_peft": True}
    assert resolve(SFTConfig, None, fields).config.lora_r == 4
    name = next(iter(given))
    with pytest.raises(ConfigError, match=f"{name}: .* has no effect: the adapter .*{name} is from python"):
        resolve(SFTConfig, None, fields | given)


def test_all_linear_is_compared_by_what_it_stands_for(root, plain, tmp_path):
    with pytest.raises(ConfigError, match="lora_target_modules: .*all-linear.* has no effect"):
        check_same(config_of(plain, lora_r=4, lora_alpha=8), plain, None)
    whole = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    folder = adapter_at(tmp_path / "whole", root / "llama", whole)
    check_same(config_of(folder, lora_r=4, lora_alpha=8), folder, None)


def test_a_folder_without_a_tokenizer_has_its_bases(plain, root):
    assert load_tokenizer(config_of(plain)).get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"base_model_name_or_path": None}, "doesn't name its base model .* set lora_base_model"),
        ({"base_model_name_or_path": "/gone/base"}, "names /gone/base as its base, and there is no such folder; set"),
        ({"peft_type": "PROMPT_TUNING"}, "is an adapter of type PROMPT_TUNING; expected LORA"),
        ({"peft_type": "IA3"}, "is an adapter of type IA3; expected LORA"),
        ({"alora_invocation_tokens": [1]}, "is an aLoRA adapter"),
    ],
)
def test_adapters_that_cannot_be_used_are_refused_by_field(plain, change, match):
    told(plain, **change)
    for load in (load_tokenizer, lambda config: load_policy(config, TOKENIZER, CPU)):
        with pytest.raises(ConfigError, match=f"model: .*{match}"):
            load(config_of(plain))


def test_a_base_that_has_moved_is_named_by_a_field_and_saved_with_the_adapter(plain, root, tmp_path):
    told(plain, base_model_name_or_path=None)
    policy = load_policy(config_of(plain, lora_base_model=str(root / "llama")), TOKENIZER, CPU)
    save_model(policy, tmp_path / "own")
    saved = json.loads((tmp_path / "own/adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(root / "llama")
    with pytest.raises(ConfigError, match="lora_base_model: there is no folder /gone/base"):
        load_policy(config_of(plain, lora_base_model="/gone/base"), TOKENIZER, CPU)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a"}\n')
    fields = {"model": str(root / "llama"), "dataset": str(file), "use_peft": True, "lora_base_model": "x"}
    with pytest.raises(ConfigError, match="lora_base_model: has no effect: .* is no adapter's folder"):
        resolve(SFTConfig, None, fields)


def test_an_adapter_of_an_adapter_and_of_another_architecture(plain, root, tmp_path):
    second = shutil.copytree(plain, tmp_path / "second")
    told(second, base_model_name_or_path=str(plain))
    with pytest.raises(ConfigError, match="the base of the adapter .* is an adapter itself; merge that one"):
        load_policy(config_of(second), TOKENIZER, CPU)
    told(second, base_model_name_or_path=str(root / "mamba"))
    with pytest.raises(ConfigError, match="model: the adapter .* doesn't fit its base .*, a MambaForCausalLM: "):
        load_policy(config_of(second), TOKENIZER, CPU)


# ---------------------------------------------------------------- inits that change the base


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian", "orthogonal"])
def test_the_reference_of_an_adapter_that_changed_its_base_is_a_copy_of_it(root, tmp_path, init):
    """PiSSA and OLoRA take the new adapter off the base: with the adapter off, or put on a second time, the model is
    another one."""
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    settings.task_type = "CAUSAL_LM"
    folder = adapter_at(tmp_path / "adapter", root / "llama", settings)
    with torch.no_grad():
        started = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "llama"), folder)(ROWS).logits
    config = config_of(folder)
    policy = load_policy(config, TOKENIZER, CPU)
    keep_adapter(policy, {"reference": ModelSpec()}, config)
    with torch.no_grad():
        torch.testing.assert_close(policy.model(ROWS).logits, started, rtol=1e-5, atol=1e-5)
        models.disturb(policy)
        assert (policy.model(ROWS).logits - started).abs().max() > 0.01
        policy.model.set_adapter("reference", inference_mode=True)
        torch.testing.assert_close(policy.model(ROWS).logits, started, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for name, p in policy.named_parameters() if ".reference." in name)
