"""From a folder to a policy, and back to a folder that transformers and peft load."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ft_host.batch import IGNORE, Batch, Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.errors import ConfigError
from ft_host.models import Policy, checkpointing, kernels, load_policy, merge_adapter, precision, probe, save_model
from ft_host.models.load import dropout_of
from ft_host.testing import models

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
SHARING = "the load-balancing loss is over full sequences: a prompt that rows share is computed for each of them"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    """`saved("llama")`: the folder of a tiny model, made once."""
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


def policy_of(folder: Path | str, **fields: Any) -> Policy:
    return load_policy(RunConfig(model=str(folder), **fields), TOKENIZER, CPU)


def nll(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    return -values["logp"]


def dft(values: dict[str, torch.Tensor], part: slice) -> torch.Tensor:
    return -values["logp"].detach().exp() * values["logp"]


def some_rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 256, (length,), generator=generator).tolist() for length in (9, 17, 2, 12)]


def batch_of(rows: list[list[int]]) -> Batch:
    segments = [Segment(input_ids=row, labels=row, row=index) for index, row in enumerate(rows)]
    return flat_batch(segments, num_rows=len(rows))


def alone(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Log-probs of all rows by a model's own full logits, each row alone."""
    out = []
    for row in rows:
        ids = torch.tensor([row])
        logs = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        out.append(logs.gather(1, ids[0, 1:, None]).squeeze(1))
    return torch.cat(out)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def trained(policy: Policy) -> list[str]:
    return [name for name, parameter in policy.named_parameters() if parameter.requires_grad]


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("name", ["llama", "qwen", "gemma", "gpt2", "moe"])
def test_a_folder_becomes_a_policy_with_its_log_probs(saved, name):
    policy = policy_of(saved(name))
    assert policy.training and policy.kernel == "sdpa"
    assert policy.notes == ([SHARING] if name == "moe" else [])
    rows = some_rows()
    eager = "eager" if name == "gemma" else None  # with transformers up to 5.20, sdpa would leave out its soft cap
    expected = alone(AutoModelForCausalLM.from_pretrained(saved(name), attn_implementation=eager), rows)
    close(policy(batch_of(rows))["logp"], expected)


def test_loading_leaves_the_random_state(saved):
    state = torch.random.get_rng_state()
    policy = policy_of(saved("llama"))
    assert torch.equal(torch.random.get_rng_state(), state)
    probe.probe(policy)
    assert torch.equal(torch.random.get_rng_state(), state) and policy.training


def test_a_model_without_attention_takes_a_rectangle_and_says_so(saved):
    policy = policy_of(saved("mamba"))
    assert policy.kernel == "none"
    assert len(policy.notes) == 1 and "MambaForCausalLM takes padded batches" in policy.notes[0]
    rows = some_rows()
    model = AutoModelForCausalLM.from_pretrained(saved("mamba"))
    close(policy(batch_of(rows))["logp"], alone(model, rows), 2e-5)
    # and its gradients are those of the rows alone
    (-policy(batch_of(rows), loss=nll)["loss"]).backward()
    alone(model, rows).sum().backward()
    for (name, found), expected in zip(policy.model.named_parameters(), model.parameters(), strict=True):
        assert (found.grad - expected.grad).norm() <= 1e-4 * expected.grad.norm() + 1e-6, name
    with pytest.raises(ConfigError, match="segment_attention sdpa.*a convolution over tokens"):
        policy_of(saved("mamba"), segment_attention="sdpa")


LFM2 = {"layer_types": ["conv", "full_attention"]}


def test_models_that_go_their_own_way(tmp_path):
    """Recurrence beside attention, a bias by distance, a look into the mask: all take a rectangle, and are exact."""
    import transformers

    mamba = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4}
    families = {
        "Jamba": mamba | {"num_experts": 2, "use_mamba_kernels": False},
        "Lfm2": LFM2,
        "Bloom": {"n_head": 4, "n_layer": 2},
        "Doge": {},
    }
    rows = some_rows()
    for family, own in families.items():
        model = models._make(getattr(transformers, f"{family}Config")(**models.SIZES, **own), 0)
        models.save_tiny(tmp_path / family, model, TOKENIZER)
        policy = policy_of(tmp_path / family, router_aux_loss_coef=0.0)
        assert policy.kernel == "none" and f"{family}ForCausalLM takes padded batches" in policy.notes[0]
        close(policy.eval()(batch_of(rows))["logp"], alone(model.eval(), rows), 2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_that_leaks_between_rows_is_seen_by_the_probe(tmp_path, monkeypatch, dtype):
    """Where nothing about the model is known beforehand; with weak convolutions, in a type whose rounding hides
    them."""
    from transformers import Lfm2Config

    models.save_tiny(tmp_path, models._make(Lfm2Config(**models.SIZES, **LFM2), 0), TOKENIZER)
    monkeypatch.setattr(kernels, "_mixes_otherwise", lambda model: None)
    policy = policy_of(tmp_path, dtype=dtype)
    assert policy.kernel == "none" and "a row changes the log-probs of another one" in policy.notes[0]


def test_a_rectangle_can_be_asked_for(saved):
    policy = policy_of(saved("llama"), segment_attention="none")
    assert policy.kernel == "none" and policy.causal_lm.config._attn_implementation == "sdpa"
    assert len(policy.notes) == 1


def test_flex_is_refused_where_it_cannot_train(saved):
    with pytest.raises(ConfigError, match="segment_attention flex.*on CUDA and XPU only"):
        policy_of(saved("llama"), segment_attention="flex")


def test_a_head_that_is_not_understood_is_refused(saved, monkeypatch):
    """The probe compares with the model's own logits."""
    monkeypatch.setattr(Policy, "_head", lambda *_: {"logp": torch.zeros(31)})
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not give its own log-probs"):
        policy_of(saved("llama"))


def test_dropout_is_seen_by_the_probe(saved, monkeypatch):
    """What a kernel can't do in training only is found before the first step."""
    policy = policy_of(saved("llama"))
    modes, forward = [], Policy.forward

    def noted(self, *arguments, **named):
        modes.append(self.model.training)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(Policy, "forward", noted)
    probe.probe(policy)
    assert modes == [True, False, False]


# ---------------------------------------------------------------- what is refused


def broken(saved: Any, tmp_path: Path, name: str = "llama") -> Path:
    return shutil.copytree(saved(name), tmp_path / "broken")


def test_no_such_folder_names_the_nearest(saved):
    with pytest.raises(ConfigError, match=r"there is no folder .*/lama; did you mean .*/llama\?"):
        policy_of(saved("llama").with_name("lama"))


def test_a_name_that_is_neither_here_nor_on_a_hub(saved, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    saved("llama")
    monkeypatch.chdir(saved("llama").parent)
    with pytest.raises(ConfigError, match=r"model: lama can't be loaded: .*; did you mean llama\?"):
        policy_of("lama")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        policy_of(tmp_path)


def test_pickled_weights(saved, tmp_path):
    folder = broken(saved, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"only pytorch_model\.bin, which can run code.*expected safetensors"):
        policy_of(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match="no weights"):
        policy_of(folder)


def test_weights_cut_short(saved, tmp_path):
    file = broken(saved, tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"model\.safetensors: 5000 bytes of \d+: the file was cut"):
        policy_of(file.parent)


def test_missing_weights(saved, tmp_path):
    file = broken(saved, tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight: they would be"):
        policy_of(file.parent)


def test_weights_of_another_shape(saved, tmp_path):
    file = broken(saved, tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 300}))
    with pytest.raises(ConfigError, match=r"lm_head\.weight of shape \(256, 64\); its .* it \(300, 64\)"):
        policy_of(file.parent)


def test_an_encoder_decoder(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(
        T5Config(vocab_size=256, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"encoder-decoder \(t5\); expected a causal language model"):
        policy_of(tmp_path)


def test_a_model_of_something_else(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="can't be loaded: Unrecognized configuration class"):
        policy_of(tmp_path)


def test_more_tokens_than_embeddings(tmp_path):
    models.tiny_llama(vocab_size=100).save_pretrained(tmp_path)
    assert len(TOKENIZER) > policy_of(tmp_path).config.vocab_size == 100  # rows that hold such a token are refused


def test_unknown_names_of_modules(saved):
    with pytest.raises(ConfigError, match=r"lora_target_modules: .* no module q_prjo; did you mean q_proj\? Its lin"):
        policy_of(saved("llama"), use_peft=True, lora_target_modules=["k_proj", "q_prjo"])
    with pytest.raises(ConfigError, match=r"lora_modules_to_save: .* no module zzz\. Its linear layers: down_proj, ga"):
        policy_of(saved("llama"), use_peft=True, lora_modules_to_save=["zzz"])
    with pytest.raises(ConfigError, match=r"Its linear layers: c_attn, c_fc, c_proj, lm_head"):
        policy_of(saved("gpt2"), use_peft=True, lora_target_modules=["q_proj"])


def test_what_this_machine_cannot_do(saved, monkeypatch):
    with pytest.raises(ConfigError, match="fp16: .* needs a GPU"):
        precision(RunConfig(fp16=True), CPU)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    for bits in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(ConfigError, match=f"{bits}: bitsandbytes is not installed"):
            policy_of(saved("llama"), use_peft=True, **{bits: True})
    broken = SimpleNamespace(nn=SimpleNamespace(Linear4bit=lambda *a, **b: 1 / 0, Linear8bitLt=lambda *a, **b: 1 / 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes" or find(name))
    monkeypatch.setitem(sys.modules, "bitsandbytes", broken)
    for bits in ("load_in_4bit", "load_in_8bit"):
        with pytest.raises(ConfigError, match=f"{bits}: bitsandbytes doesn't run on this CPU .ZeroDivisionError"):
            policy_of(saved("llama"), use_peft=True, use_cpu=True, **{bits: True})
    with pytest.raises(ConfigError, match="use_liger_kernel: needs a GPU"):
        policy_of(saved("llama"), use_liger_kernel=True)
    with pytest.raises(ConfigError, match="flash_attention_2|FlashAttention2"):
        policy_of(saved("llama"), attn_implementation="flash_attention_2")


def test_a_soft_cap_of_scores_is_kept_where_transformers_would_leave_it_out(saved, monkeypatch):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

    rows = some_rows()
    capped = policy_of(saved("gemma"), attn_implementation="eager", segment_attention="none")
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as up to transformers 5.20
    policy = policy_of(saved("gemma"))
    assert policy.kernel == "sdpa" and policy.layout_difference < 1e-5
    with torch.no_grad():
        close(policy(batch_of(rows), want=("logp",))["logp"], alone(capped.causal_lm, rows))
    with pytest.raises(ConfigError, match=r"attn_implementation: sdpa leaves out the soft cap .*softcapping: 5\.0"):
        policy_of(saved("gemma"), attn_implementation="sdpa")


def test_precision_by_default_fits_the_hardware():
    assert precision(RunConfig(), CPU) == "no"
    assert precision(RunConfig(bf16=True), CPU) == "bf16"


# ---------------------------------------------------------------- adapters

ADAPTERS = {
    "all-linear": {},
    "two": {"lora_target_modules": ["q_proj", "down_proj"]},
    "head": {"lora_target_modules": ["q_proj", "lm_head"]},
    "saved head": {"lora_modules_to_save": ["lm_head"]},
    "saved embeddings": {"lora_modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_an_adapter_from_start_to_merge(saved, tmp_path, name, adapter):
    """At initialisation it is the base; trained, it has peft's own log-probs and gradients; its folder loads in peft,
    can be trained further, and merged gives the same logits. Untied and tied embeddings."""
    rows, base = some_rows(), saved(name)
    batch = batch_of(rows)
    policy = policy_of(base, use_peft=True, lora_r=4, **ADAPTERS[adapter])
    assert policy.kernel == "sdpa"
    close(policy(batch)["logp"], policy_of(base)(batch)["logp"], 1e-6)
    names = trained(policy)
    assert names and all("lora_" in name or "modules_to_save" in name for name in names)
    if adapter == "all-linear":
        assert {name.split(".")[-4] for name in names} == {
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        }

    models.disturb(policy)
    policy(batch, loss=dft)["loss"].backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    policy.zero_grad()
    expected = alone(policy.model, rows)
    (-(expected.detach().exp() * expected).sum()).backward()
    assert len(found) == len(names)
    for key, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            assert (found[key] - parameter.grad).norm() <= 2e-5 * parameter.grad.norm() + 1e-6, key
    close(policy(batch)["logp"], expected)

    folder = tmp_path / "adapter"
    save_model(policy, folder)
    assert "ft_segments" not in "".join(file.read_text() for file in folder.glob("*.json"))
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        close(alone(loaded, rows), expected, 1e-6)
        further = policy_of(folder, use_peft=True)
        close(further(batch)["logp"], expected, 1e-6)
        assert sorted(trained(further)) == sorted(names)
        merge_adapter(RunConfig(model=str(base)), folder, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        close(alone(merged, rows), expected, 2e-5)


def test_an_adapter_needs_use_peft(saved, tmp_path):
    save_model(policy_of(saved("llama"), use_peft=True), tmp_path)
    with pytest.raises(ConfigError, match="is an adapter; set use_peft"):
        policy_of(tmp_path)


def test_an_adapter_with_checkpointing(saved):
    batch = batch_of(some_rows())
    grads = []
    for on in (False, True):
        torch.manual_seed(0)  # an adapter starts at random
        policy = policy_of(saved("llama"), use_peft=True, gradient_checkpointing=on)
        models.disturb(policy)
        policy(batch, loss=nll)["loss"].backward()
        grads.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    close(grads[1], grads[0], 1e-6)
    assert len(grads[0]) and grads[0].any()


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("name", ["llama", "qwen", "moe", "gpt2"])
def test_what_is_saved_is_what_transformers_loads(saved, tmp_path, name):
    policy = policy_of(saved(name))
    models.disturb(policy)
    save_model(policy, tmp_path / "own")
    assert policy.causal_lm.config._attn_implementation == "ft_segments_sdpa", "saving must not uninstall"
    # as a sharded run does it: from whole tensors, by the names of the policy
    state = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    save_model(policy, tmp_path / "state", state)
    rows = some_rows()
    for folder in (tmp_path / "own", tmp_path / "state"):
        assert "ft_segments" not in (folder / "config.json").read_text()
        assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert "ft_segments" not in model.config._attn_implementation
        with torch.no_grad():
            close(alone(model, rows), policy(batch_of(rows))["logp"])
    own, state = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "state"))
    assert own == state


def test_an_adapter_saved_from_whole_tensors(saved, tmp_path):
    policy = policy_of(saved("llama"), use_peft=True, lora_modules_to_save=["lm_head"])
    models.disturb(policy)
    save_model(policy, tmp_path / "own")
    save_model(policy, tmp_path / "state", {key: tensor.clone() for key, tensor in policy.state_dict().items()})
    own, state = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("own", "state"))
    assert own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize("name", ["moe", "gpt_oss"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_balance_of_experts_is_the_models_own(saved, name, checkpointed):
    """Value and gradient of `aux_loss`, flat and as a rectangle, against the model's own on the padded rows."""
    rows = some_rows()
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    model = AutoModelForCausalLM.from_pretrained(saved(name)).train()
    expected = model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    expected.backward()
    assert expected > 0
    for kernel in ("sdpa", "none"):
        policy = policy_of(
            saved(name), router_aux_loss_coef=0.5, segment_attention=kernel, gradient_checkpointing=checkpointed
        )
        assert policy.router_aux_loss_coef == 0.5
        loss = policy(batch_of(rows), loss=nll)["loss"]
        close(policy.aux_loss.detach(), expected.detach(), 1e-5)
        (policy.aux_loss + 0 * loss).backward()
        for (key, found), reference in zip(policy.model.named_parameters(), model.parameters(), strict=True):
            wanted = torch.zeros_like(found) if reference.grad is None else reference.grad
            assert (found.grad - wanted).norm() <= 1e-4 * wanted.norm() + 1e-6, key


def test_the_weight_of_the_balance(saved):
    assert policy_of(saved("moe")).router_aux_loss_coef == pytest.approx(0.001), "the config's own"
    off = policy_of(saved("moe"), router_aux_loss_coef=0.0)
    off(batch_of(some_rows()))
    assert off.router_aux_loss_coef == 0 and off.aux_loss is None
    assert policy_of(saved("llama"), router_aux_loss_coef=0.0).router_aux_loss_coef == 0
    with pytest.raises(ConfigError, match="router_aux_loss_coef: LlamaForCausalLM has no load-balancing loss"):
        policy_of(saved("llama"), router_aux_loss_coef=0.1)


# ---------------------------------------------------------------- memory and speed


def is_checkpointed(policy: Policy) -> bool:
    return policy.causal_lm.is_gradient_checkpointing


def test_checkpointing_is_on_where_memory_is_short(saved, monkeypatch):
    assert not is_checkpointed(policy_of(saved("llama")))
    monkeypatch.setattr(checkpointing, "free_memory", lambda device: 2 * 2**20)
    short = policy_of(saved("llama"))
    assert is_checkpointed(short)
    assert [note for note in short.notes if note.startswith("gradient checkpointing is on: activations would take")]
    asked = policy_of(saved("llama"), gradient_checkpointing=False)
    assert not is_checkpointed(asked) and not asked.notes
    # fewer tokens at a time fit
    assert not is_checkpointed(policy_of(saved("llama"), max_tokens_per_micro_batch=64))


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < checkpointing.free_memory(CPU) < 2**50


COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@pytest.mark.nightly("inductor")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, COMPILER])])
def test_compiled_layers_give_the_same(tmp_path, monkeypatch, backend):
    """aot_eager traces forward and backward as inductor does, and leaves out the C++."""
    own = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **given: own(module, backend=backend, **given))
    models.save_tiny(tmp_path, models.tiny_llama(num_hidden_layers=1), TOKENIZER)
    rows = some_rows()
    results = []
    for compiled in (False, True):
        policy = policy_of(tmp_path, torch_compile=compiled)
        out = policy(batch_of(rows), loss=nll)
        out["loss"].backward()
        results.append((out["logp"], [p.grad.clone() for p in policy.parameters()]))
    close(results[1][0], results[0][0])
    for found, expected in zip(results[1][1], results[0][1], strict=True):
        assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_labels_that_supervise_nothing(saved):
    row = some_rows()[0]
    batch = flat_batch([Segment(input_ids=row, labels=[IGNORE] * len(row), row=0)], num_rows=1)
    out = policy_of(saved("llama"))(batch, loss=nll)
    assert out["loss"] == 0 and out["logp"].shape == (0,)


def test_dropout_is_off_where_asked_for_but_an_adapters(tmp_path):
    """GPT-2 has layers of it and a rate in its attention; in training its log-probs are then those of evaluation."""
    folder = models.save_tiny(
        tmp_path / "gpt2", models.tiny_gpt2(resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3), models.tiny_tokenizer()
    )
    tokens = torch.arange(5, 45).tolist()
    batch = flat_batch([Segment(input_ids=tokens, labels=tokens, row=0)], num_rows=1)
    moved = {}
    for disable in (False, True):
        config = RunConfig(model=str(folder), disable_dropout=disable)
        policy = load_policy(config, models.tiny_tokenizer(), torch.device("cpu"))
        with torch.no_grad():
            drawn = policy(batch)["logp"]
            moved[disable] = float((drawn - policy.eval()(batch)["logp"]).abs().max())
        assert dropout_of(policy) == (0.0 if disable else 0.3)
        assert policy.config.resid_pdrop == 0.3, "the model's config is not ours to change"
    assert moved[False] > 1e-2 and moved[True] < 1e-5
    config = RunConfig(model=str(folder), disable_dropout=True, use_peft=True, lora_dropout=0.5)
    adapted = load_policy(config, models.tiny_tokenizer(), torch.device("cpu"))
    rates = {module.p for module in adapted.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0, 0.5}
