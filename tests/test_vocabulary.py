"""A tokenizer with more tokens than the model has embeddings: rows with one are refused by line, or it gets one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from ft_host import train
from ft_host.data import load_tokenizer
from ft_host.errors import ConfigError, DataError
from ft_host.models import load_frozen, load_policy
from ft_host.models.vocabulary import lacking, rows_of_adapter

NEW = "<|new|>"
CPU = torch.device("cpu")


@pytest.fixture
def larger(config, tiny, tmp_path):
    """The tiny model with a tokenizer of two more tokens, and twelve rows without them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    AutoModelForCausalLM.from_pretrained(tiny / "model").save_pretrained(tmp_path / "model")
    filled = [f"<|fill-{number}|>" for number in range(len(tokenizer), 256)]
    tokenizer.add_tokens([*filled, NEW, "<|other|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "model")
    write(tmp_path, [{"text": f"ab {n} ab"} for n in range(12)])
    return dataclasses.replace(
        config,
        model=str(tmp_path / "model"),
        dataset=str(tmp_path / "rows.jsonl"),
        eval_dataset=None,
        per_device_train_batch_size=4,
        max_steps=2,
        save_steps=0,
    )


def write(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_without_such_a_token_are_trained_on_and_one_with_it_is_refused_by_line(larger, tmp_path, capsys):
    config = dataclasses.replace(larger, progress="lines", train_sampling_strategy="sequential")
    train(config)
    said = capsys.readouterr().err
    assert "tokens and the model embeddings for 256: rows with '<|new|>'" in said and "resize_token_embeddings" in said
    write(tmp_path, [{"text": "ab"}] * 8 + [{"text": f"ab {NEW}"}])
    config = dataclasses.replace(config, output_dir=str(tmp_path / "second"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 9: holds the token '<\|new\|>' \(\d+\), and .*for 256"):
        train(config)


def test_a_padding_token_without_an_embedding_is_refused(larger):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(larger.model)
    tokenizer.pad_token = NEW
    with pytest.raises(ConfigError, match=r"pads with '<\|new\|>'.*set resize_token_embeddings"):
        lacking(larger, tokenizer)


@pytest.mark.parametrize("lora, tied", [(False, True), (True, True), (True, False)])
def test_added_embeddings_are_trained_saved_and_loaded(larger, tmp_path, lora, tied):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    write(tmp_path, [{"text": f"ab {NEW} ab {n}"} for n in range(12)])
    settings = AutoConfig.from_pretrained(larger.model, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(settings).save_pretrained(larger.model)
    more = {"use_peft": True, "lora_r": 4, "merge_adapter": True} if lora else {}
    config = dataclasses.replace(larger, resize_token_embeddings=True, **more)
    start = load_policy(config, load_tokenizer(config), CPU)
    new = load_tokenizer(config).convert_tokens_to_ids(NEW)
    before = start.causal_lm.get_input_embeddings()(torch.tensor([new])).detach()
    folder = train(config).folder
    tokens = len(AutoTokenizer.from_pretrained(folder / "model"))
    whole = AutoModelForCausalLM.from_pretrained(folder / ("merged" if lora else "model"))
    assert whole.get_input_embeddings().weight.shape[0] == tokens == whole.config.vocab_size == 258
    after = whole.get_input_embeddings().weight[new]
    assert (after - before).abs().max() > 1e-4, "the new embedding was trained"
    if not lora:
        return
    assert rows_of_adapter(str(folder / "model")) == 258
    base = AutoModelForCausalLM.from_pretrained(larger.model)
    base.resize_token_embeddings(258)
    adapted = PeftModel.from_pretrained(base, folder / "model")
    ids = torch.tensor([[5, new, 7]])
    with torch.no_grad():
        expected = whole(ids).logits
        torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)
        again = load_frozen(config, str(folder / "model"), CPU)
        torch.testing.assert_close(again.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    saved = load_file(folder / "model" / "adapter_model.safetensors")
    size = sum(tensor.numel() for name, tensor in saved.items() if "embed" in name or "lm_head" in name)
    assert size == (2 if tied else 4) * base.config.hidden_size, "the rows of the new tokens alone are saved"


def test_a_run_with_added_embeddings_goes_on_as_if_it_had_not_stopped(larger, tmp_path):
    write(tmp_path, [{"text": f"ab {NEW} ab {n}"} for n in range(12)])
    config = dataclasses.replace(
        larger,
        resize_token_embeddings=True,
        use_peft=True,
        lora_r=4,
        save_steps=1,
        lr_scheduler_type="constant",
        output_dir=str(tmp_path / "straight"),
    )
    straight = losses(train(config).folder)
    first = train(dataclasses.replace(config, max_steps=1, output_dir=str(tmp_path / "first"))).folder
    checkpoint = str(first / "checkpoints" / "step-1")
    gone_on = dataclasses.replace(config, output_dir=str(tmp_path / "on"), resume_from_checkpoint=checkpoint)
    assert losses(train(gone_on).folder)[-1] == straight[-1]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_frozen_copy_gets_the_same_new_embeddings(larger):
    config = dataclasses.replace(larger, resize_token_embeddings=True)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = load_frozen(config, config.model, CPU).causal_lm.get_input_embeddings().weight
    torch.manual_seed(2)
    two = load_policy(config, load_tokenizer(config), CPU).causal_lm.get_input_embeddings().weight
    assert torch.equal(one, two) and one.shape[0] == 258
    assert torch.equal(state, torch.manual_seed(1).get_state())


def test_what_resizing_can_not_do_is_refused(larger, tmp_path):
    with pytest.raises(ConfigError, match="the backend vllm loads the model as its folder has it"):
        dataclasses.replace(larger, resize_token_embeddings=True, backend="vllm").check()
    with pytest.raises(ConfigError, match="can't be sharded by fsdp2"):
        dataclasses.replace(larger, resize_token_embeddings=True, use_peft=True, distributed_strategy="fsdp2").check()
