"""The reward head: a sequence classifier as a policy of flat batches, from its folder to one that transformers
loads."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from ft_host.batch import IGNORE, Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.models import Policy, load_frozen, load_policy, merge_adapter, probe, save_model
from ft_host.models.load import score_pad
from ft_host.models.rectangle import rectangle, unshared
from ft_host.testing import models

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
FAMILIES = ["llama", "qwen", "mistral", "gpt2", "moe"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    """`saved("llama")`: the folder of a tiny language model; `saved("llama", True)`: of its classifier."""
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


def policy_of(folder: Path | str, tokenizer: Any = TOKENIZER, **fields: Any) -> Policy:
    return load_policy(RunConfig(model=str(folder), **fields), tokenizer, CPU, "reward")


def some_rows(*ends: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() + list(ends) for length in (9, 17, 1, 12)]


def batch_of(rows: list[list[int]], pad: int = 0) -> Batch:
    segments = [Segment(input_ids=row, labels=[IGNORE] * len(row), row=index) for index, row in enumerate(rows)]
    return flat_batch(segments, num_rows=len(rows), pad_token_id=pad)


def shared_batch(prompt: list[int], completions: list[list[int]]) -> Batch:
    segments = [Segment(input_ids=prompt, labels=[IGNORE] * len(prompt), row=0)]
    for row, tokens in enumerate(completions):
        segments.append(Segment(input_ids=tokens, labels=[IGNORE] * len(tokens), row=row, parent=0))
    return flat_batch(segments, num_rows=len(completions), pad_token_id=0)


def padded(model: Any, rows: list[list[int]], pad: int = 0) -> torch.Tensor:
    """What transformers gives for the rows as one padded batch: (R,) scores."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return model(input_ids=ids, attention_mask=mask).logits.squeeze(1)


def scores(policy: Policy, batch: Batch) -> torch.Tensor:
    return policy(batch, want=("score",))["score"]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_gradients_are_those_of_a_padded_batch(saved, name):
    policy = policy_of(saved(name, True))
    assert policy.training and policy.kernel == "sdpa" and not policy.notes
    model = AutoModelForSequenceClassification.from_pretrained(saved(name, True)).train()
    rows, weights = some_rows(), torch.tensor([1.0, -2.0, 0.5, 3.0])
    found, expected = scores(policy, batch_of(rows)), padded(model, rows)
    assert found.dtype == torch.float32 and found.shape == (4,) and expected.std() > 0.1
    close(found, expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (key, ours), theirs in zip(policy.model.named_parameters(), model.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() <= 2e-5 * theirs.grad.norm() + 1e-6, key


@pytest.mark.parametrize("kernel", ["sdpa", "none"])
def test_a_shared_prompt_gives_the_scores_of_whole_sequences(saved, kernel):
    prompt, completions = some_rows()[1], [some_rows()[0], some_rows()[2]]
    results = []
    for batch in (shared_batch(prompt, completions), batch_of([prompt + tokens for tokens in completions])):
        policy = policy_of(saved("llama", True), segment_attention=kernel)
        assert policy.kernel == kernel
        out = scores(policy, batch)
        (out[0] - 2 * out[1]).backward()
        results.append((out.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])))
    for shared, whole in zip(*results, strict=True):
        close(shared, whole, 2e-6)  # sums in another order: single gradients differ by up to 1.4e-6


def test_ends_in_a_rectangle_and_unshared():
    """Of rows in any order, one of which ends before its segment does."""
    batch = shared_batch([5, 6, 7], [[8, 9, 0, 0], [10], [11, 12]])
    expected = [9, 10, 12]
    assert batch.input_ids[batch.ends].tolist() == expected
    flat = unshared(batch)
    assert flat.input_ids[flat.ends].tolist() == expected
    input_ids, _, where, _ = rectangle(batch)
    assert input_ids.flatten()[where[batch.ends]].tolist() == expected


def test_a_classifier_that_takes_a_rectangle(tmp_path):
    """Recurrence beside attention: transformers has a classifier of Jamba."""
    from transformers import JambaConfig

    own = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2}
    model = models._make(JambaConfig(**models.SIZES, **own, use_mamba_kernels=False), 0)
    models.save_tiny(tmp_path, models.as_classifier(model), TOKENIZER)
    policy = policy_of(tmp_path).eval()
    assert policy.kernel == "none" and "JambaForSequenceClassification takes padded batches" in policy.notes[0]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    rows = some_rows()
    close(scores(policy, batch_of(rows)), torch.cat([padded(model, [row]) for row in rows]), 2e-5)
    whole = batch_of([rows[1] + rows[0], rows[1] + rows[3]])
    close(scores(policy, shared_batch(rows[1], [rows[0], rows[3]])), scores(policy, whole), 2e-5)


def test_wants_of_another_head_are_refused(saved):
    reward, batch = policy_of(saved("llama", True)), batch_of(some_rows())
    for want in (("logp",), ("score", "entropy")):
        with pytest.raises(ValueError, match=f"want: {want[-1]}: nothing that a reward model gives; it gives score"):
            reward(batch, want=want)
    with pytest.raises(ValueError, match="loss: nothing that a reward model gives"):
        reward(batch, want=("score",), loss=lambda values, part: -values["logp"])
    language = load_policy(RunConfig(model=str(saved("llama"))), TOKENIZER, CPU)
    with pytest.raises(ValueError, match="want: score: nothing that a language model gives; it gives logp, "):
        language(batch, want=("score",))


def test_no_rows_give_no_scores_with_a_gradient(saved):
    policy = policy_of(saved("llama", True))
    out = scores(policy, flat_batch([], num_rows=0))
    assert out.shape == (0,)
    out.sum().backward()  # nothing may be left without a gradient where others wait for it
    assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


# ---------------------------------------------------------------- the probe


def test_the_probe_compares_scores(saved, monkeypatch):
    monkeypatch.setattr(Policy, "_score", lambda policy, hidden: hidden[:, 0].float())
    with pytest.raises(ConfigError, match="LlamaForSequenceClassification does not give its own scores.*differ by"):
        policy_of(saved("llama", True))


def test_the_probe_sees_where_scores_are_read(saved, monkeypatch):
    """One that takes the last token, padding or not, is found out."""
    monkeypatch.setattr(
        probe, "flat_batch", lambda segments, num_rows, pad_token_id: flat_batch(segments, num_rows=num_rows)
    )
    with pytest.raises(ConfigError, match="does not give its own scores"):
        policy_of(saved("llama", True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_that_leaks_between_rows_is_seen_by_the_probe(saved, monkeypatch, dtype):
    """Were all tokens one row, the scores of the rows behind the first would move with it."""
    from ft_host.models import attention

    policy = policy_of(saved("llama", True), dtype=dtype)
    assert probe.probe(policy)[1] == 0

    def leaky(layout):
        layout.chains = [list(range(index)) for index in range(len(layout.lengths))]
        layout.before = [sum(layout.lengths[:index]) for index in range(len(layout.lengths))]

    monkeypatch.setattr(attention.Layout, "__post_init__", leaky)
    assert probe.probe(policy)[1] > 0.01
    # allowed to differ from single rows by anything, the layout is refused for that alone
    monkeypatch.setattr(probe, "probe", lambda policy: (0.0, 0.01 if policy.kernel == "sdpa" else 0.0))
    policy = policy_of(saved("llama", True), dtype=dtype)
    assert policy.kernel == "none" and "a row changes the scores of another one by 0.01" in policy.notes[0]


# ---------------------------------------------------------------- loading


def test_a_language_model_gets_a_new_head_by_the_seed_alone(saved):
    heads = []
    state = torch.random.get_rng_state()
    for seed in (1, 1, 2):
        policy = policy_of(saved("llama"), seed=seed)
        heads.append(policy.causal_lm.score.weight.detach().clone())
        body = load_file(saved("llama") / "model.safetensors")
        found = {f"model.{key}": tensor for key, tensor in policy.causal_lm.base_model.state_dict().items()}
        assert all(torch.equal(found[key], tensor) for key, tensor in body.items() if key != "lm_head.weight")
    assert heads[0].shape == (1, 64) and heads[0].any()
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(3)
    adapted = policy_of(saved("llama"), seed=1, use_peft=True)
    assert torch.equal(adapted.causal_lm.score.modules_to_save["default"].weight, heads[0])


def test_a_classifier_keeps_its_head_and_the_random_state(saved):
    state = torch.random.get_rng_state()
    policy = policy_of(saved("llama", True))
    expected = load_file(saved("llama", True) / "model.safetensors")["score.weight"]
    assert torch.equal(policy.causal_lm.score.weight, expected)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("name", "classifier"), [("model.norm.weight", False), ("score.weight", True)])
def test_missing_weights(saved, tmp_path, name, classifier):
    """Also the head, where the folder says that it is a classifier's."""
    file = shutil.copytree(saved("llama", classifier), tmp_path / "broken") / "model.safetensors"
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=f"model: .* has no weights for {name}: they would be random"):
        policy_of(file.parent)


def test_a_classifier_of_several_labels(tmp_path):
    models.save_tiny(tmp_path, models.as_classifier(models.tiny_llama(), num_labels=3), TOKENIZER)
    with pytest.raises(ConfigError, match=r"model: .* is a sequence classifier with 3 labels; a reward model has one"):
        policy_of(tmp_path)


def test_a_model_without_a_classifier(saved):
    with pytest.raises(ConfigError, match="model: .*mamba can't be loaded: Unrecognized configuration class"):
        policy_of(saved("mamba"))


def test_a_classifier_without_a_score(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(**sizes, num_hidden_layers=1, num_labels=1)
    models.save_tiny(tmp_path, BertForSequenceClassification(config), TOKENIZER)
    with pytest.raises(ConfigError, match="BertForSequenceClassification has no module `score`: a reward is read from"):
        policy_of(tmp_path)


def test_the_router_loss_is_not_offered(saved):
    assert policy_of(saved("moe", True)).router_aux_loss_coef == 0
    with pytest.raises(ConfigError, match="router_aux_loss_coef: a reward model is trained without"):
        policy_of(saved("moe", True), router_aux_loss_coef=0.1)


def test_checkpointing_gives_the_same(saved):
    grads = []
    for on in (False, True):
        policy = policy_of(saved("llama", True), gradient_checkpointing=on)
        assert policy.causal_lm.is_gradient_checkpointing == on
        scores(policy, batch_of(some_rows())).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    close(grads[1], grads[0], 1e-6)


@pytest.mark.parametrize("use_peft", [False, True])
def test_the_head_is_not_rounded(saved, use_peft):
    """With the maths in bfloat16: scores have more digits than that has, and the head's gradient is of that type."""
    policy = policy_of(saved("llama", True), use_peft=use_peft)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scores(policy, batch_of(some_rows()))
    out.sum().backward()
    assert out.dtype == torch.float32 and not torch.equal(out, out.bfloat16().float())
    close(out, scores(policy, batch_of(some_rows())), 0.05)


@pytest.mark.parametrize("use_peft", [False, True])
def test_weights_in_half_precision(saved, use_peft):
    policy = policy_of(saved("llama", True), dtype="bfloat16", use_peft=use_peft)
    assert policy.kernel == "sdpa"
    out = scores(policy, batch_of(some_rows()))
    out.sum().backward()
    close(out, scores(policy_of(saved("llama", True)), batch_of(some_rows())), 0.05)


# ---------------------------------------------------------------- padding that is a token of the text


def eos_as_pad(missing: bool) -> Any:
    tokenizer = models.tiny_tokenizer()
    tokenizer.pad_token = None if missing else tokenizer.eos_token
    assert score_pad(tokenizer) == tokenizer.eos_token_id
    return tokenizer


@pytest.mark.parametrize("missing", [False, True], ids=["pad is eos", "no pad"])
@pytest.mark.parametrize("use_peft", [False, True])
def test_padding_that_is_eos(saved, tmp_path, missing, use_peft):
    """Rows end in EOS, and the score is read before it, here and in what transformers loads."""
    tokenizer = eos_as_pad(missing)
    end = tokenizer.eos_token_id
    policy = policy_of(saved("llama"), tokenizer, use_peft=use_peft)
    models.disturb(policy)
    rows = some_rows(end)
    batch = batch_of(rows, score_pad(tokenizer))
    assert batch.input_ids[batch.ends].tolist() == [row[-2] for row in rows]
    found = scores(policy, batch).detach()
    save_model(policy, tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    folder = tmp_path / "own"
    if use_peft:
        folder = tmp_path / "merged"
        merge_adapter(RunConfig(model=str(saved("llama"))), tmp_path / "own", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.pad_token_id == end and model.config.num_labels == 1
    with torch.no_grad():
        close(padded(model, rows, end), found, 2e-5 if use_peft else 5e-6)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_what_transformers_loads(saved, tmp_path, name):
    """From a language model, tied or not, trained a little; from own weights and from whole tensors."""
    policy = policy_of(saved(name))
    models.disturb(policy)
    save_model(policy, tmp_path / "own")
    save_model(policy, tmp_path / "state", {key: tensor.clone() for key, tensor in policy.state_dict().items()})
    rows = some_rows()
    for folder in (tmp_path / "own", tmp_path / "state"):
        assert json.loads((folder / "config.json").read_text())["architectures"] == [type(policy.causal_lm).__name__]
        assert "ft_segments" not in (folder / "config.json").read_text()
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            close(padded(model, rows), scores(policy, batch_of(rows)))
        again = policy_of(folder)
        close(scores(again, batch_of(rows)), scores(policy, batch_of(rows)), 1e-6)
    own, state = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "state"))
    assert own == state


@pytest.mark.parametrize("start", ["language model", "classifier"])
@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2"])
def test_an_adapter_from_start_to_merge(saved, tmp_path, name, start):
    """The head is trained and saved with it, whole; it loads in peft, trains further, and merges."""
    base, batch = saved(name, start == "classifier"), batch_of(some_rows())
    policy = policy_of(base, use_peft=True, lora_r=4)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert [name for name in names if "lora_" not in name] == [
        "model.base_model.model.score.modules_to_save.default.weight"
    ]
    assert not [name for name in names if "lora_" in name and ".score" in name]
    models.disturb(policy)
    out = scores(policy, batch)
    (out[0] - out[1] + out[2] * out[3]).backward()
    found = {key: p.grad.clone() for key, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    theirs = torch.cat([policy.model(input_ids=torch.tensor([row])).logits[0] for row in some_rows()])
    (theirs[0] - theirs[1] + theirs[2] * theirs[3]).backward()
    close(out, theirs)
    assert len(found) == len(names)
    for key, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            assert (found[key] - parameter.grad).norm() <= 2e-5 * parameter.grad.norm() + 1e-6, key

    expected = out.detach()
    folder = tmp_path / "adapter"
    save_model(policy, folder)
    TOKENIZER.save_pretrained(folder)
    save_model(policy, tmp_path / "state", {key: tensor.clone() for key, tensor in policy.state_dict().items()})
    own, state = (load_file(place / "adapter_model.safetensors") for place in (folder, tmp_path / "state"))
    assert own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)
    with torch.no_grad():
        classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
        close(padded(PeftModel.from_pretrained(classifier, folder), some_rows()), expected)
        further = policy_of(folder, use_peft=True)
        close(scores(further, batch), expected, 1e-6)
        assert sorted(n for n, parameter in further.named_parameters() if parameter.requires_grad) == sorted(names)
        frozen = load_frozen(RunConfig(), str(folder), CPU, head="reward", tokenizer=TOKENIZER)
        close(scores(frozen, batch), expected, 1e-6)
        merge_adapter(RunConfig(model=str(base)), folder, tmp_path / "merged")
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
        close(padded(merged, some_rows()), expected, 2e-5)


# ---------------------------------------------------------------- frozen


def test_a_frozen_reward_model(saved):
    frozen = load_frozen(RunConfig(), str(saved("llama", True)), CPU, head="reward")
    assert not frozen.training and not any(parameter.requires_grad for parameter in frozen.parameters())
    close(
        scores(frozen, batch_of(some_rows())), scores(policy_of(saved("llama", True)), batch_of(some_rows())).detach()
    )


def test_a_frozen_reward_model_must_say_what_padding_is(tmp_path):
    model = models.as_classifier(models.tiny_llama())
    model.config.pad_token_id = None
    models.save_tiny(tmp_path, model, TOKENIZER)
    with pytest.raises(ConfigError, match="eval_reward: .* doesn't say which token is padding"):
        load_frozen(RunConfig(), str(tmp_path), CPU, head="reward", field="eval_reward")
