"""Models beside the policy: frozen companions, their vocabulary, the adapter kept as a reference; shared prompts of a
mixture of experts."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ft_host.batch import IGNORE, Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.models import add_reference_adapter, check_vocabulary, load_frozen, load_policy, save_model
from ft_host.models.policy import unshared
from ft_host.testing import models
from ft_host.types import ModelSpec

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    """`saved("llama")`: the folder of a tiny model, made once."""
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


def config_of(folder: Path | str, **fields: Any) -> RunConfig:
    return RunConfig(model=str(folder), **fields)


def some_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPT, FIRST, SECOND = some_tokens(11, 0), some_tokens(7, 1), some_tokens(4, 2)


def shared_batch(supervised_prompt: bool = False) -> Batch:
    labels = PROMPT if supervised_prompt else [IGNORE] * len(PROMPT)
    return flat_batch(
        [
            Segment(input_ids=PROMPT, labels=labels, row=0),
            Segment(input_ids=FIRST, labels=FIRST, row=0, parent=0),
            Segment(input_ids=SECOND, labels=SECOND, row=1, parent=0),
        ],
        num_rows=2,
    )


def full_batch(supervised_prompt: bool = False) -> Batch:
    """The same targets, in another order where the prompt has any."""
    segments = []
    for row, tokens in enumerate((FIRST, SECOND)):
        prompt = PROMPT if supervised_prompt and not row else [IGNORE] * len(PROMPT)
        segments.append(Segment(input_ids=PROMPT + tokens, labels=prompt + tokens, row=row))
    return flat_batch(segments, num_rows=2)


# ---------------------------------------------------------------- frozen


def test_a_frozen_model_is_another_one_and_has_no_gradient(saved):
    config = config_of(saved("llama"), gradient_checkpointing=True, model_revision="of the policy only")
    frozen = load_frozen(config, str(saved("qwen")), CPU)
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    assert frozen.kernel == "sdpa" and not frozen.causal_lm.is_gradient_checkpointing
    policy = load_policy(config_of(saved("qwen")), TOKENIZER, CPU)
    found = frozen(full_batch(), want=("logp",))["logp"]
    assert not found.requires_grad
    torch.testing.assert_close(found, policy(full_batch(), want=("logp",))["logp"].detach(), rtol=0, atol=0)


def test_a_frozen_mixture_of_experts_has_no_router_loss(saved):
    frozen = load_frozen(config_of(saved("llama")), str(saved("moe")), CPU)
    frozen(full_batch())
    assert frozen.router_aux_loss_coef == 0 and frozen.aux_loss is None


def test_an_adapters_folder_frozen(saved, tmp_path):
    trained = load_policy(config_of(saved("llama"), use_peft=True), TOKENIZER, CPU)
    models.disturb(trained)
    save_model(trained, tmp_path)
    expected = trained.eval()(full_batch())["logp"].detach()
    by_source = load_frozen(config_of(saved("qwen")), str(tmp_path), CPU)
    by_argument = load_frozen(config_of(saved("qwen")), str(saved("llama")), CPU, adapter=str(tmp_path))
    for frozen in (by_source, by_argument):
        assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
        torch.testing.assert_close(frozen(full_batch())["logp"], expected, rtol=1e-6, atol=1e-6)


def test_a_frozen_source_is_refused_by_the_name_of_its_field(saved, tmp_path):
    with pytest.raises(ConfigError, match="ref_model: there is no folder .*/lama; did you mean .*/llama"):
        saved("llama")
        load_frozen(config_of(saved("qwen")), str(saved("llama").with_name("lama")), CPU)
    with pytest.raises(ConfigError, match=r"judge: .* has no config\.json"):
        load_frozen(config_of(saved("qwen")), str(tmp_path), CPU, field="judge")


# ---------------------------------------------------------------- vocabularies


def test_the_same_vocabulary_is_taken(saved, tmp_path):
    config = config_of(saved("llama"))
    check_vocabulary(config, str(saved("qwen")), TOKENIZER)
    models.tiny_llama().save_pretrained(tmp_path)  # without a tokenizer there is only the size
    check_vocabulary(config, str(tmp_path), TOKENIZER)


def test_another_size_is_refused(saved, tmp_path):
    models.save_tiny(tmp_path, models.tiny_llama(vocab_size=300), TOKENIZER)
    (tmp_path / "model.safetensors").write_bytes(b"")  # never opened
    with pytest.raises(ConfigError, match="ref_model: .* has a vocabulary of 300 tokens, .*/llama one of 256"):
        check_vocabulary(config_of(saved("llama")), str(tmp_path), TOKENIZER)


def test_other_tokens_are_refused(saved, tmp_path):
    models.save_tiny(tmp_path, models.tiny_llama(), TOKENIZER)
    file = tmp_path / "tokenizer.json"
    written = json.loads(file.read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(written))
    a, b = (TOKENIZER.get_vocab()[letter] for letter in "ab")
    pattern = rf"teacher: .*another vocabulary.*: 'a' is {a} here and {b} there; 'b' is {b} here and {a} there$"
    with pytest.raises(ConfigError, match=pattern):
        check_vocabulary(config_of(saved("llama")), str(tmp_path), TOKENIZER, "teacher")


def test_rows_of_padding_are_no_tokens(saved, tmp_path):
    """Where a companion may have more rows in its embedding, what counts is the tokenizer."""
    config = config_of(saved("llama"))
    padded = ModelSpec(allow_padded_vocab=True, hint="use something else")
    size = len(TOKENIZER)
    for rows, taken in ((size + 40, True), (size, True), (size - 1, False)):
        models.save_tiny(tmp_path / str(rows), models.tiny_llama(vocab_size=rows), TOKENIZER)
        if taken:
            check_vocabulary(config, str(tmp_path / str(rows)), TOKENIZER, "teacher", padded)
            continue
        with pytest.raises(ConfigError, match=f"teacher: .* a vocabulary of {rows} tokens, .*; use something else$"):
            check_vocabulary(config, str(tmp_path / str(rows)), TOKENIZER, "teacher", padded)
    for file in (tmp_path / str(size + 40)).glob("tokenizer*"):
        file.unlink()  # nothing says which rows are tokens
    with pytest.raises(ConfigError, match="both must read the same tokens; use something else$"):
        check_vocabulary(config, str(tmp_path / str(size + 40)), TOKENIZER, "teacher", padded)


def test_tokens_of_its_own(saved, tmp_path):
    """Then it must only be a model."""
    own = ModelSpec(own_tokenizer=True)
    models.save_tiny(tmp_path / "other", models.tiny_llama(vocab_size=200), models.other_tokenizer())
    check_vocabulary(config_of(saved("llama")), str(tmp_path / "other"), TOKENIZER, "teacher", own)
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="teacher: .* holds no weights"):
        check_vocabulary(config_of(saved("llama")), str(tmp_path / "other"), TOKENIZER, "teacher", own)


def test_the_vocabulary_of_an_adapter_is_that_of_its_base(saved, tmp_path):
    save_model(load_policy(config_of(saved("llama"), use_peft=True), TOKENIZER, CPU), tmp_path / "adapter")
    check_vocabulary(config_of(tmp_path / "adapter", use_peft=True), str(saved("qwen")), TOKENIZER)
    check_vocabulary(config_of(saved("qwen")), str(tmp_path / "adapter"), TOKENIZER)


# ---------------------------------------------------------------- the adapter kept as a reference


@pytest.mark.parametrize("fields", [{}, {"lora_modules_to_save": ["lm_head"]}], ids=["lora", "with a saved head"])
def test_the_adapter_that_training_started_from_is_kept(saved, tmp_path, fields):
    first = load_policy(config_of(saved("llama"), use_peft=True, **fields), TOKENIZER, CPU)
    models.disturb(first)
    save_model(first, tmp_path / "start")
    policy = load_policy(config_of(tmp_path / "start", use_peft=True), TOKENIZER, CPU)
    batch = full_batch()
    before = policy(batch)["logp"].detach()
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]

    add_reference_adapter(policy, tmp_path / "start")
    assert policy.training and policy.model.active_adapters == ["default"]
    assert [name for name, parameter in policy.named_parameters() if parameter.requires_grad] == names
    models.disturb(policy)
    assert not torch.allclose(policy(batch)["logp"], before)
    policy.model.set_adapter("reference", inference_mode=True)
    torch.testing.assert_close(policy(batch)["logp"].detach(), before, rtol=0, atol=0)
    policy.model.set_adapter("default")
    assert [name for name, parameter in policy.named_parameters() if parameter.requires_grad] == names

    save_model(policy, tmp_path / "own")
    save_model(policy, tmp_path / "state", {key: tensor.clone() for key, tensor in policy.state_dict().items()})
    own, state, start = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "state", "start"))
    assert own.keys() == state.keys() == start.keys() and all(torch.equal(own[key], state[key]) for key in own)
    assert not list((tmp_path / "own").glob("reference*")) and not list((tmp_path / "state").glob("reference*"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved("llama")), tmp_path / "own")
    again = load_policy(config_of(tmp_path / "own", use_peft=True), TOKENIZER, CPU)
    torch.testing.assert_close(again(batch)["logp"], policy(batch)["logp"], rtol=1e-6, atol=1e-6)
    assert list(loaded.peft_config) == ["default"]


# ---------------------------------------------------------------- shared prompts of a mixture of experts


def test_unshared_repeats_the_prompt():
    batch = shared_batch()
    found, expected = unshared(batch), full_batch()
    for name in ("input_ids", "position_ids", "targets", "rows", "ends"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert (found.lengths, found.parents) == (expected.lengths, expected.parents)
    # the first token of each completion is read from the same copy of the prompt's last
    last = len(PROMPT) - 1
    expected.sources[expected.sources == last + len(PROMPT + FIRST)] = last
    assert torch.equal(found.sources, expected.sources)


@pytest.mark.parametrize("supervised_prompt", [False, True])
@pytest.mark.parametrize("kernel", ["sdpa", "none"])
def test_the_balance_of_experts_is_that_of_full_sequences(saved, kernel, supervised_prompt):
    config = config_of(saved("moe"), router_aux_loss_coef=0.1, segment_attention=kernel)
    results = []
    for batch in (shared_batch(supervised_prompt), full_batch(supervised_prompt)):
        policy = load_policy(config, TOKENIZER, CPU)
        out = policy(batch, want=("logp",))["logp"]
        (policy.aux_loss - out.sum()).backward()
        sums = torch.zeros(2).index_add(0, batch.rows, out.detach())
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        results.append((sums, policy.aux_loss.detach(), gradient))
    for shared, full in zip(*results, strict=True):
        torch.testing.assert_close(shared, full, rtol=1e-5, atol=1e-5)
    if kernel == "sdpa":  # without the loss, the prompt is computed once, and the balance would be another
        policy = load_policy(dataclasses.replace(config, router_aux_loss_coef=0.0), TOKENIZER, CPU)
        seen = []
        policy.causal_lm.get_decoder().register_forward_pre_hook(
            lambda module, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
        )
        policy(shared_batch())
        assert seen == [len(PROMPT + FIRST + SECOND)]
