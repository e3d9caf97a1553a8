"""Folders of models with a file that can't be read, or without one: refused by the file's name."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch

from ft_host import train
from ft_host.config.paths import folder_problem
from ft_host.data import load_tokenizer
from ft_host.errors import ConfigError
from ft_host.models import load_frozen
from ft_host.models.folder import check_folder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def model(tiny, tmp_path):
    return shutil.copytree(tiny / "model", tmp_path / "model")


def refused(config, model):
    """What a run says of its model, before it makes a folder."""
    run = dataclasses.replace(config, model=str(model))
    with pytest.raises(ConfigError) as caught:
        train(run)
    assert str(caught.value).startswith("model: "), caught.value
    return str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content, said",
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter in line 1, column 8"),
        ("", "not JSON: Expecting value in line 1"),
        ("[]", "holds a list, expected an object"),
        ("[" * 100_000, "not JSON that can be read"),
        ("\udcff", "not JSON: not UTF-8 at byte 0"),
        (POINTER, "a Git LFS pointer, not the file itself"),
    ],
)
def test_settings_that_are_not_json_are_named(model, name, content, said):
    (model / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"ref_model: .*{name}: {said}"):
        check_folder(str(model), "ref_model")


def test_a_run_names_the_file_before_a_model_is_loaded(config, model):
    (model / "generation_config.json").write_text("{")
    assert "generation_config.json: not JSON" in refused(config, model)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda path: cut(path, 20_000), r"model\.safetensors: 20000 bytes of \d+: the file was cut"),
        (lambda path: cut(path, 40), r"safetensors: its header can't be read \(the file was cut"),
        (lambda path: cut(path, 0), r"model\.safetensors: not safetensors \(0 bytes"),
        (lambda path: path.write_text(POINTER), r"model\.safetensors: a Git LFS pointer"),
        (
            lambda path: path.write_text("hello, world, this is no model"),
            r"model\.safetensors: not safetensors \(30 bytes",
        ),
        (lambda path: (path.unlink(), path.symlink_to("gone")), r"model\.safetensors: a symbolic link to gone, which"),
    ],
)
def test_weights_that_are_not_whole_are_named(config, model, harm, said):
    harm(model / "model.safetensors")
    assert re.search(said, refused(config, model))
    settings = json.loads((model / "config.json").read_text())
    scores = {"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "score"}}
    (model / "config.json").write_text(json.dumps(settings | scores))
    assert re.search(said, folder_problem(model)), "a reward model's folder too"


def test_gguf_and_files_are_no_folders_of_a_model(config, model, tmp_path):
    (tmp_path / "only").mkdir()
    shutil.copy(model / "model.safetensors", tmp_path / "only" / "model-q4.gguf")
    assert "holds model-q4.gguf, a GGUF file" in refused(config, tmp_path / "only")
    assert "is a GGUF file, weights for inference" in refused(config, tmp_path / "only" / "model-q4.gguf")
    assert "is a file; expected a folder written by save_pretrained" in refused(config, model / "model.safetensors")


def test_a_folder_without_a_tokenizer_says_so(config, model):
    for path in [*model.glob("tokenizer*"), *model.glob("chat_template*"), *model.glob("special_tokens*")]:
        path.unlink()
    said = refused(config, model)
    assert "has no tokenizer (tokenizer.json or the like), only " in said and "model.safetensors" in said


def test_an_adapter_with_a_pointer_for_its_weights_is_named(config, tiny, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    load_tokenizer(dataclasses.replace(config, model=str(tiny / "model"))).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(POINTER)
    run = dataclasses.replace(config, model=str(tmp_path / "adapter"), use_peft=True)
    with pytest.raises(ConfigError, match=r"model: .*adapter_model\.safetensors: a Git LFS pointer"):
        train(run)


@pytest.mark.parametrize("head", [None, "reward"])
def test_weights_of_more_layers_than_the_config_has_are_refused(config, model, head):
    settings = json.loads((model / "config.json").read_text())
    layers = settings["num_hidden_layers"]
    fewer = {"num_hidden_layers": layers - 1, "layer_types": settings.get("layer_types", [])[: layers - 1]}
    (model / "config.json").write_text(json.dumps(settings | fewer))
    with pytest.raises(ConfigError, match=rf"holds weights of layers that .*model\.layers\.{layers - 1}\."):
        load_frozen(config, str(model), torch.device("cpu"), head=head)
