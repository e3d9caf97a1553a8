"""What only a GPU can show, and a pretended one as far as it goes (`python -m pytest --pretended-device -m gpu`): whole
runs end at the fast kernels, hold no more than they should, and say so when memory runs out."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from device import lean

from ft_host.errors import OutOfMemory
from ft_host.generation import frames
from ft_host.testing import lines, preference_texts, run_in, save_tiny, tiny_llama, tiny_run
from ft_host.testing.parity import forget_accelerate
from ft_host.training import launch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# As in Llama 3 8B, Qwen3 8B and Mistral 7B: four query heads for each key head.
FOUR = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64}
LETTERS = '''
def letters(completions, **columns):
    """The share of letters in what a model says."""
    return [sum(letter.isalpha() for letter in text) / (len(text) + 1) for text in completions]
'''


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    """A folder with a model of four query heads for a key head."""
    return save_tiny(tmp_path_factory.mktemp("four") / "model", tiny_llama(**FOUR))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with a model of 17 million weights, 68 MB in float32."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "head_dim": 128}
    return save_tiny(tmp_path_factory.mktemp("large") / "model", tiny_llama(**sizes))


def config_of(method: str, model: Path, folder: Path, **fields: Any) -> Any:
    """Three steps on the device in bfloat16, as by default there."""
    from ft_dpo.config import DPOConfig
    from ft_grpo.config import GRPOConfig
    from ft_sft.config import SFTConfig

    forget_accelerate()
    given = {"use_cpu": False, "bf16": True, "max_steps": 3}
    if method == "grpo":
        (folder / "letters.py").write_text(LETTERS, encoding="utf-8")
        given |= {"reward": [f"{folder / 'letters.py'}:letters"], "num_generations": 4, "max_completion_length": 24}
        given |= {"per_device_train_batch_size": 8}
    config_class = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}[method]
    rows = preference_texts()
    if method == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return tiny_run(config_class, model, folder, rows, **(given | fields))


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["facts"]


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_auto_ends_at_fast_kernels_with_four_query_heads_a_key_head(four, method, tmp_path):
    """Rows that share prompts need flex. Compiled on a GPU, with a backward, whatever the number of tokens."""
    folder = run_in(config_of(method, four, tmp_path), "run")
    facts = facts_of(folder)
    assert facts["plan/kernel"] == "flex" and facts["plan/rows_kernel"] in ("varlen", "flex")
    assert "plan/kernel_refused" not in facts
    steps = lines(folder)
    assert len(steps) == 3
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in steps)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_fast_kernel_learns_what_a_call_a_segment_does(four, method, tmp_path):
    """Losses of three steps in bfloat16, whose rounding is all that may differ."""
    config = config_of(method, four, tmp_path, learning_rate=1e-3)
    fast, plain = (lines(run_in(config, name, segment_attention=name)) for name in ("auto", "sdpa"))
    for one, other in zip(fast, plain, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.1)


def test_compiled_layers_give_the_numbers_of_operations_one_by_one():
    for name, narrow, apart in lean.differences():
        assert apart <= (1e-2 if narrow else 2e-5), name


@pytest.mark.parametrize("family", ["qwen", "gemma"])
def test_layers_are_compiled_before_the_first_step(family, tmp_path):
    """In bfloat16, of rows of all lengths: in the steps nothing more."""
    config = config_of("sft", Path(lean.model_of(tmp_path, family)), tmp_path, segment_attention="sdpa")
    with lean.watched() as seen:
        steps = lines(run_in(config, "run"))
    assert len(steps) == 3 and all(math.isfinite(step["loss"]) for step in steps)
    assert {"normed", "of_states", "product", "of_gate_and_up"} <= seen["calls"].keys()
    assert seen["compiled"] == 0


@pytest.mark.skipif(torch.version.cuda is None and torch.version.hip is None, reason="needs graphs of a real device")
def test_rollouts_are_decoded_from_graphs(four, tmp_path):
    """Of 40 tokens a completion: the first steps of a frame run one by one, then it is captured."""
    folder = run_in(config_of("grpo", four, tmp_path, max_completion_length=40), "run")
    assert len(lines(folder)) == 3
    assert facts_of(folder)["plan/decoding"] == frames.GRAPHS_USED


def test_no_step_holds_the_logits(tmp_path):
    """Of 4,168 tokens over 65,536 entries they are a gibibyte in float32, and as much again for their gradient. Two
    tiles of 256 MiB are held, and weights, gradients and moments of 130."""
    model = save_tiny(tmp_path / "model", tiny_llama(vocab_size=65_536, max_position_embeddings=1024))
    from ft_sft.config import SFTConfig

    forget_accelerate()
    rows = [{"prompt": "", "completion": "word " * 104} for _ in range(8)]  # a byte is a token
    fields = {"use_cpu": False, "bf16": False, "segment_attention": "sdpa", "max_steps": 1}
    config = tiny_run(SFTConfig, model, tmp_path, rows, per_device_train_batch_size=8, **fields)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    steps = lines(run_in(config, "run"))
    assert steps[-1]["num_tokens"] == 8 * 521
    assert torch.cuda.max_memory_allocated() - before < 900 << 20


def test_an_adapter_s_base_is_held_in_the_type_of_the_maths(large, tmp_path, monkeypatch):
    """Weights that nobody trains take two bytes each, when training begins."""
    config = config_of("sft", large, tmp_path, use_peft=True, lora_r=4, max_steps=1)
    gc.collect()  # models of earlier tests
    before, held, fit = torch.cuda.memory_allocated(), [], launch.fit

    def seen(run, *args, **given):
        held.append(torch.cuda.memory_allocated() - before)
        return fit(run, *args, **given)

    monkeypatch.setattr(launch, "fit", seen)
    weights = facts_of(run_in(config, "run"))["model/parameters"]
    assert weights > 16e6 and 2 * weights < held[0] < 2.5 * weights


def test_memory_that_runs_out_is_said_with_its_phase(large, tmp_path):
    """Another tensor holds what is free but for some mebibytes."""
    config = config_of("sft", large, tmp_path)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - (24 << 20)), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(OutOfMemory, match="memory ran out in loading the model"):
            run_in(config, "run")
    finally:
        del taken
        torch.cuda.empty_cache()
