"""What a run saves stops where it was taught to stop, and loads in transformers with all that it had."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ft_host.config import RunConfig
from ft_host.data import load_tokenizer
from ft_host.errors import ConfigError
from ft_host.models import load_policy
from ft_host.models.save import merge_adapter, save_whole
from ft_host.models.special_tokens import ends_of_run
from ft_host.testing import models, vision
from ft_host.testing import processes as in_processes
from ft_host.training.launch import train

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path) -> Path:
    """A base model whose own EOS is </s> (2), as are its texts'; its chat template ends turns with <|end|> (7)."""
    tokenizer = models.tiny_tokenizer()
    tokenizer.eos_token = "</s>"
    return models.save_tiny(tmp_path / "base", models.tiny_llama(), tokenizer)


def ends(folder: Path) -> tuple[Any, Any]:
    generation = json.loads((folder / "generation_config.json").read_text())
    config = folder / "config.json"
    return generation["eos_token_id"], json.loads(config.read_text())["eos_token_id"] if config.is_file() else None


# ---------------------------------------------------------------- end tokens


def test_every_saved_folder_ends_where_the_run_was_taught_to_end(base, config, tmp_path):
    """Model, checkpoint, adapter, merged. Old end tokens stay beside the taught one."""
    rows = tmp_path / "chat.jsonl"
    turn = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    rows.write_text(f"{json.dumps(turn)}\n" * 8)
    own = {"model": str(base), "dataset": str(rows), "eval_dataset": None, "eos_token": "<|end|>", "max_steps": 1}
    own |= {"learning_rate": 0.1, "save_steps": 1}
    run = dataclasses.replace(config, **own, output_dir=str(tmp_path / "full"))
    finished = train(run)
    for folder in (finished.folder / "model", finished.folder / "checkpoints/step-1/model"):
        assert ends(folder) == ([7, 2], 7)
    assert not [each for each in finished.findings if each["code"] == "DATA003"]
    run = dataclasses.replace(run, use_peft=True, merge_adapter=True, output_dir=str(tmp_path / "lora"))
    lora = train(run).folder
    assert ends(lora / "merged") == ([7, 2], 7)
    for folder in (lora / "model", lora / "checkpoints/step-1/model"):
        assert ends(folder) == ([7, 2], None)


def test_generation_from_the_saved_folder_stops_there(base, tmp_path):
    config = RunConfig(model=str(base), eos_token="<|end|>")
    tokenizer = load_tokenizer(config)
    policy = load_policy(config, tokenizer, CPU)
    with torch.no_grad():  # every token is followed by <|end|>
        policy.causal_lm.lm_head.weight[7] = 0
        hidden = policy.model.model(torch.tensor([[5]])).last_hidden_state[0, 0]
        policy.causal_lm.lm_head.weight.copy_(0 * policy.causal_lm.lm_head.weight)
        policy.causal_lm.lm_head.weight[7] = hidden
    save_whole(policy, tokenizer, config, tmp_path / "model")
    model, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    out = model.generate(torch.tensor([[5]]), max_new_tokens=20, do_sample=False)
    assert out.tolist() == [[5, 7]]
    assert tokenizer.eos_token_id == model.config.eos_token_id == 7


def test_a_turn_that_nothing_stops_at_is_a_finding_with_the_token_in_its_remedy(base, config, tmp_path):
    rows = tmp_path / "chat.jsonl"
    turn = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    rows.write_text(f"{json.dumps(turn)}\n" * 8)
    run = dataclasses.replace(config, model=str(base), dataset=str(rows), eval_dataset=None, max_steps=1)
    (found,) = [each for each in train(run).findings if each["code"] == "DATA003"]
    assert "end in <|end|>, which neither the run nor the saved model stops at" in found["message"]
    assert found["remedies"][0]["patch"][0]["value"] == "<|end|>"


def test_the_ends_of_a_run_are_those_of_its_generation_config_and_its_tokenizer(base):
    config = RunConfig(model=str(base))
    tokenizer = load_tokenizer(config)
    assert ends_of_run(config, tokenizer) == {2}
    GenerationConfig(eos_token_id=[2, 9]).save_pretrained(base)
    assert ends_of_run(config, tokenizer) == {2, 9}
    (base / "generation_config.json").unlink()  # transformers makes one of the model's config
    assert ends_of_run(config, load_tokenizer(dataclasses.replace(config, eos_token="<|end|>"))) == {2, 7}


def test_special_tokens_agree_and_a_padding_token_that_ends_texts_is_no_index_of_an_embedding(base, tmp_path):
    config = RunConfig(model=str(base))
    tokenizer = load_tokenizer(config)
    tokenizer.pad_token = tokenizer.eos_token
    policy = load_policy(config, tokenizer, CPU)
    save_whole(policy, tokenizer, config, tmp_path / "model")
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = AutoModelForCausalLM.from_pretrained(base)
    assert again.get_input_embeddings().padding_idx == before.get_input_embeddings().padding_idx


@pytest.mark.parametrize("text", ['{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}', '{"top_k": 5}'])
def test_a_generation_config_that_cannot_be_saved_is_mended(base, tmp_path, text):
    """transformers refuses to save temperature without do_sample; the run would have been lost at its first save."""
    (base / "generation_config.json").write_text(text)
    config = RunConfig(model=str(base))
    tokenizer = load_tokenizer(config)
    policy = load_policy(config, tokenizer, CPU)
    save_whole(policy, tokenizer, config, tmp_path / "model")
    saved = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert saved["eos_token_id"] == 2 and not {"temperature", "top_p", "top_k"} & saved.keys()
    assert any("without effect" in note for note in policy.notes)


# ---------------------------------------------------------------- vision-language models


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Any:
    """The folder of a tiny vision-language model, made once."""
    root = tmp_path_factory.mktemp("seeing")

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            models.save_tiny(root / name, vision.FAMILIES[name]())
            (root / name / "preprocessor_config.json").write_text('{"image_processor_type": "any"}')
        return root / name

    return folder


def sees(name: str) -> bool:
    """Whether a tensor or module is of the tower or the projector."""
    return any(part in name for part in ("vision_tower", "multi_modal_projector", "visual"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.mark.parametrize("name", vision.FAMILIES)
def test_a_vision_language_model_is_saved_whole_from_a_run_of_texts(seeing, tmp_path, name):
    config = RunConfig(model=str(seeing(name)))
    tokenizer = load_tokenizer(config)
    policy = load_policy(config, tokenizer, CPU)
    trained = {key: parameter.requires_grad for key, parameter in policy.causal_lm.named_parameters()}
    assert {key for key, learns in trained.items() if not learns} == {key for key in trained if sees(key)}
    assert any(note.startswith("no text goes through") for note in policy.notes)
    models.disturb(policy)
    save_whole(policy, tokenizer, config, tmp_path / "model")
    before, after = tensors(seeing(name)), tensors(tmp_path / "model")
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and not any(sees(key) for key in changed)
    kinds = [json.loads((place / "config.json").read_text()) for place in (seeing(name), tmp_path / "model")]
    assert kinds[0]["architectures"] == kinds[1]["architectures"]
    assert (tmp_path / "model/preprocessor_config.json").is_file()


@pytest.mark.parametrize("name", vision.FAMILIES)
def test_all_linear_stays_out_of_the_tower(seeing, tmp_path, name):
    config = RunConfig(model=str(seeing(name)), use_peft=True)
    tokenizer = load_tokenizer(config)
    policy = load_policy(config, tokenizer, CPU)
    adapted = [key for key, parameter in policy.named_parameters() if parameter.requires_grad]
    assert adapted and not any(sees(key) for key in adapted)
    save_whole(policy, tokenizer, config, tmp_path / "adapter")
    merge_adapter(config, tmp_path / "adapter", tmp_path / "merged", tokenizer)
    assert tensors(tmp_path / "merged").keys() == tensors(seeing(name)).keys()
    assert (tmp_path / "merged/preprocessor_config.json").is_file()
    again = load_policy(dataclasses.replace(config, model=str(tmp_path / "adapter")), tokenizer, CPU)
    assert [key for key, parameter in again.named_parameters() if parameter.requires_grad] == adapted
    linear = (key for key, module in policy.causal_lm.named_modules() if type(module) is torch.nn.Linear)
    inside = next(key for key in linear if sees(key))
    with pytest.raises(ConfigError, match=f"lora_target_modules: {inside} is .*, which no text goes through"):
        load_policy(dataclasses.replace(config, lora_target_modules=[inside]), tokenizer, CPU)


def test_a_chunked_mask_falls_back_to_padded_batches(tmp_path):
    """Llama 4, whose text decoder is a language model with a head of its own, and its router a layer of two results."""
    models.save_tiny(tmp_path, vision.tiny_llama4_text())
    policy = load_policy(RunConfig(model=str(tmp_path), use_peft=True), models.tiny_tokenizer(), CPU)
    assert policy.kernel == "none" and any("chunked_attention" in note for note in policy.notes)
    assert any("all-linear leaves out router" in note for note in policy.notes)


@pytest.mark.slow
def test_two_processes_train_a_vision_language_model_past_the_second_step(seeing, config, tmp_path):
    """DDP waited for gradients that a tower never has. Both ways to distribute have the losses of one process."""
    own = {"model": str(seeing("gemma3")), "max_steps": 3, "eval_dataset": None, "save_steps": 0}
    found = {}
    for way, fields, processes in (
        ("one", {}, 1),
        ("ddp", {}, 2),
        ("fsdp2", {"distributed_strategy": "fsdp2"}, 2),
        ("merged", {"use_peft": True, "merge_adapter": True}, 2),
    ):
        folder = tmp_path / way
        size = {"per_device_train_batch_size": 8 // processes, "output_dir": str(folder)}
        in_processes.train_apart(dataclasses.replace(config, **own, **fields, **size), processes)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[way] = [line["loss"] for line in lines if line["kind"] == "train"]
        saved = folder / ("merged" if way == "merged" else "model")
        assert tensors(saved).keys() == tensors(seeing("gemma3")).keys()
        assert (saved / "preprocessor_config.json").is_file()
    assert found["ddp"] == pytest.approx(found["one"], rel=1e-5) and len(found["one"]) == 3
    assert found["fsdp2"] == pytest.approx(found["one"], rel=1e-5)


# ---------------------------------------------------------------- tensors without a gradient


def test_a_trained_tensor_that_gets_no_gradient_is_an_error_by_name(config, sft_with):
    source = """
@hookimpl
def ft_loss(run, batch):
    with torch.no_grad():  # a layer that the loss no longer depends on
        run.policy.causal_lm.model.norm.weight.add_(0)
    run.policy.causal_lm.model.norm.weight.requires_grad_(False)
    out = run.model(batch, want=("logp",))
    run.policy.causal_lm.model.norm.weight.requires_grad_(True)
    return LossOutput(loss=-out["logp"].sum() / run.totals["tokens"], metrics={})
"""
    cls = sft_with(source)
    from ft_host.errors import FtHostError

    with pytest.raises(FtHostError, match=r"step 1: 1 of \d+ trained tensors got no gradient, .*norm\.weight"):
        train(cls(**vars(config)))
    cls.trains_in_parts = True
    assert train(cls(**vars(dataclasses.replace(config, output_dir=config.output_dir + "2")))).steps == 5


def test_experts_that_no_token_went_to_count_with_those_of_their_layer():
    from ft_host.models.reach import unreached

    names = [f"layers.0.mlp.experts.{n}.up.weight" for n in range(4)] + [
        "layers.1.mlp.experts.0.up.weight",
        "head.weight",
    ]
    assert unreached(names, [names[1], "head.weight"]) == ["layers.1.mlp.experts.0.up.weight"]
