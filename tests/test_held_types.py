"""Types: what weights are held in, and what products are computed in. On a CPU, whose autocast is asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import ft_host
from ft_host.batch import Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.models import kernels, load, load_frozen, load_policy, save_model
from ft_host.models.grouped import join_autocast
from ft_host.models.held import maths
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import held_in
from ft_host.testing import models
from ft_host.testing.invariants import beside

CPU = torch.device("cpu")
TOKENIZER = models.tiny_tokenizer()
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    """`saved("llama")`: the folder of a tiny model, made once."""
    return partial(models.save_family, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def in_bfloat16(saved, tmp_path_factory) -> Path:
    """A model whose files hold bfloat16, as most that are published do."""
    folder = tmp_path_factory.mktemp("half")
    model = AutoModelForCausalLM.from_pretrained(saved("qwen"), dtype=BF16)
    return models.save_tiny(folder, model, TOKENIZER)


def config_of(folder: Path | str, **fields: Any) -> RunConfig:
    return RunConfig(model=str(folder), **{"bf16": True, **fields})


def batch():
    rows = [torch.randint(3, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (11, 7, 20)]
    return flat_batch([Segment(input_ids=ids, labels=ids, row=i) for i, ids in enumerate(rows)], num_rows=3)


def types_of(model: torch.nn.Module, trained: bool) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad == trained}


# ---------------------------------------------------------------- held


def test_the_base_of_an_adapter_is_in_the_type_of_the_maths_and_what_is_trained_in_float32(saved, tmp_path):
    config = config_of(saved("llama"), use_peft=True, lora_modules_to_save=["lm_head"])
    policy = load_policy(config, TOKENIZER, CPU)
    assert types_of(policy, trained=False) == {BF16} and types_of(policy, trained=True) == {F32}
    assert held_in(policy.parameters()) == "bfloat16 weights, float32 where trained"
    save_model(policy, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter_model.safetensors").values()} == {F32}
    again = load_policy(config_of(tmp_path, use_peft=True), TOKENIZER, CPU)
    assert types_of(again, trained=False) == {BF16} and types_of(again, trained=True) == {F32}


@pytest.mark.parametrize("fields", [{"bf16": None}, {"bf16": False}, {"dtype": "float32"}])
def test_the_base_of_an_adapter_is_in_float32_where_the_maths_is_or_dtype_says_so(saved, fields):
    policy = load_policy(config_of(saved("llama"), use_peft=True, **fields), TOKENIZER, CPU)
    assert types_of(policy, trained=False) == {F32} and held_in(policy.parameters()) == "float32 weights"


def test_a_model_that_is_trained_whole_is_in_float32(saved):
    assert types_of(load_policy(config_of(saved("llama")), TOKENIZER, CPU), trained=True) == {F32}


def test_a_frozen_model_is_in_the_type_of_the_maths_unless_it_moves(saved):
    config, source = config_of(saved("llama")), str(saved("qwen"))
    assert types_of(load_frozen(config, source, CPU), trained=False) == {BF16}
    assert types_of(load_frozen(config, source, CPU, moves=True), trained=False) == {F32}
    told = config_of(saved("llama"), dtype="float32")
    assert types_of(load_frozen(told, source, CPU), trained=False) == {F32}


def test_a_frozen_model_in_bfloat16_gives_the_numbers_of_the_policy_to_the_bit(in_bfloat16):
    """A reference of other rounding would give a policy that hasn't moved a ratio that isn't 1."""
    config = config_of(in_bfloat16)
    policy, frozen = load_policy(config, TOKENIZER, CPU).eval(), load_frozen(config, config.model, CPU)
    assert types_of(policy, trained=True) == {F32} and types_of(frozen, trained=False) == {BF16}
    with torch.no_grad(), maths(config, CPU):
        ours, theirs = policy(batch()), frozen(batch())
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name


def test_a_frozen_model_that_will_be_sharded_is_in_one_type_as_its_policy_is(in_bfloat16, monkeypatch):
    """FSDP2 computes a policy in bfloat16 throughout: a reference with wider states would round otherwise."""
    config, widened = config_of(in_bfloat16), []
    monkeypatch.setattr(load, "keep_wide", widened.append)
    monkeypatch.setattr(load, "load_weights", partial(unsharded, load.load_weights))
    load_frozen(config, config.model, CPU, sharded=True)
    assert widened == []
    load_frozen(config, config.model, CPU)
    assert len(widened) == 1


def unsharded(function: Any, *args: Any, **named: Any) -> Any:
    """The call without shards, which need other processes."""
    return function(*args, **{**named, "shards": None})


def test_a_frozen_reward_model_scores_with_a_head_in_float32(saved):
    config = config_of(saved("llama"))
    frozen = load_frozen(config, str(saved("llama", True)), CPU, head="reward", tokenizer=TOKENIZER)
    assert frozen.causal_lm.score.weight.dtype == F32 and next(frozen.parameters()).dtype == BF16
    with torch.no_grad(), maths(config, CPU):
        scores = frozen(batch(), want=("score",))["score"]
    assert scores.dtype == F32 and not torch.equal(scores, scores.bfloat16().float())


def test_a_run_says_what_it_holds(config):
    run = ft_host.train(beside(config, "held", bf16=True, use_peft=True, max_steps=1))
    notes = RunFolder.open(run.folder).manifest["plan"]["notes"]
    assert any("bfloat16 weights, float32 where trained, bf16 mixed precision" in note for note in notes)


# ---------------------------------------------------------------- quantised


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("bf16", [None, True])
def test_quantised_weights_arent_refused_for_rounding_that_they_have_by_nature(tmp_path, bits, bf16):
    pytest.importorskip("bitsandbytes")
    models.save_tiny(tmp_path, models.tiny_llama(intermediate_size=128), TOKENIZER)  # blocks of 64
    policy = load_policy(config_of(tmp_path, bf16=bf16, use_peft=True, **{bits: True}), TOKENIZER, CPU)
    assert policy.kernel in ("sdpa", "none") and types_of(policy, trained=True) == {F32}
    assert types_of(policy, trained=False) == {torch.uint8 if "4" in bits else torch.int8, BF16 if bf16 else F32}


def test_a_leak_is_told_from_rounding_by_the_type_of_the_maths(saved):
    policy = load_policy(config_of(saved("llama"), bf16=False), TOKENIZER, CPU)
    found = {}
    for name, fields in {"float32": {}, "bf16": {"bf16": True}, "8 bits": {"load_in_8bit": True}}.items():
        config = config_of(saved("llama"), **{"bf16": False, "use_peft": True, **fields})
        with maths(config, CPU):
            found[name] = kernels._tolerances(policy, config)
    assert found == {"float32": (1e-3, 1e-5), "bf16": (0.5, 5e-3), "8 bits": (0.5, 0.5)}


# ---------------------------------------------------------------- computed in


def test_grouped_products_are_in_autocasts_type_with_gradients_in_the_weights_own():
    join_autocast()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((10, 16), (3, 16, 32)))
    ends = torch.tensor([3, 3, 10], dtype=torch.int32)
    exact = F.grouped_mm(left, right, offs=ends)
    with torch.autocast("cpu", dtype=BF16):
        rounded = F.grouped_mm(left, right, offs=ends)
        with torch.autocast("cpu", enabled=False):
            assert F.grouped_mm(left, right, offs=ends).dtype == F32
    assert exact.dtype == F32 and rounded.dtype == BF16
    by_hand = torch.cat([left[:3].bfloat16() @ right[0].bfloat16(), left[3:].bfloat16() @ right[2].bfloat16()])
    torch.testing.assert_close(rounded, by_hand)
    rounded.float().square().sum().backward()
    assert left.grad.dtype == right.grad.dtype == F32
    assert right.grad[0].abs().sum() > 0 and right.grad[1].abs().sum() == 0


@pytest.mark.parametrize("fields", [{}, {"use_peft": True}], ids=["all weights", "adapter"])
def test_experts_compute_in_bfloat16_where_the_maths_is(saved, fields, monkeypatch):
    config = config_of(saved("moe"), **fields)
    policy = load_policy(config, TOKENIZER, CPU)
    made, grouped = [], F.grouped_mm

    def spied(*args: Any, **named: Any) -> torch.Tensor:
        made.append(grouped(*args, **named))
        return made[-1]

    monkeypatch.setattr(F, "grouped_mm", spied)
    with maths(config, CPU):
        out = policy(batch(), want=("logp",))["logp"]
    assert len(made) == 2 * policy.config.num_hidden_layers and {each.dtype for each in made} == {BF16}
    out.sum().backward()
    gradients = [p.grad for p in policy.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.dtype == F32 for gradient in gradients)
