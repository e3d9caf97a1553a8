"""Memory: the estimate by part, the rules about it, and what is said when it runs out."""

from __future__ import annotations

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import ft_host
from ft_host.config import RunConfig
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.diagnostics.memory_remedies import REMEDIES, remedies_for
from ft_host.diagnostics.rules.memory import RULES
from ft_host.errors import OutOfMemory
from ft_host.generation import transformers as backend
from ft_host.monitor.memory_estimate import generation_bytes
from ft_host.testing.invariants import beside
from ft_host.testing.rules import Told, codes, findings, steps
from ft_host.training import build, launch, step
from ft_host.util import memory, model_sizes, step_memory
from ft_host.util.memory import oom_context, ran_out
from ft_host.util.model_sizes import ModelSizes
from ft_host.util.step_memory import Kept

# Of a run of examples/arithmetic on a CPU
PLAN = {
    "plan/memory_mb": 523.0,
    "plan/memory_base_mb": 420.0,
    "plan/memory_weights_mb": 2.4,
    "plan/memory_gradients_mb": 2.4,
    "plan/memory_optimizer_mb": 4.8,
    "plan/memory_activations_mb": 69.0,
    "system/memory_mb": 3900.0,
}
CASES = {
    "SYS004": (
        Told(facts=PLAN | {"watch/out_of_memory": memory.FORWARD, "watch/out_of_memory_step": 12}),
        Told(facts=PLAN, lines=steps(30, perf__peak_memory_mb=529.0)),
    ),
    "PERF013": (Told(facts=PLAN | {"system/memory_mb": 500.0}), Told(facts=PLAN)),
    "PERF011": (
        Told(facts=PLAN, lines=steps(30, perf__peak_memory_mb=lambda step: 529 + 30.0 * step)),
        Told(facts=PLAN, lines=steps(30, perf__peak_memory_mb=529.0)),
    ),
}


def test_every_rule_has_its_cases():
    assert set(CASES) == {rule.code for rule in RULES}


@pytest.mark.parametrize("code", CASES)
def test_the_faulty_case_is_found_and_the_healthy_one_is_not(code):
    faulty, healthy = CASES[code]
    assert code in codes(RULES, faulty)
    assert codes(RULES, healthy) == set()


def test_completions_of_rollouts_ahead_are_held_too_and_those_of_another_process_are_not():
    shape = ModelSizes(hidden=8, layers=2, wide=8, vocabulary=0, cached=16)
    plan = RolloutPlan(prompts=4, generations=2, steps=1, passes=1)

    def tokens(**fields) -> float:
        config = RolloutConfig(model="m", max_completion_length=60, decode_batch_size=20, **fields)
        run = SimpleNamespace(config=config, rollouts=plan, world_size=1)
        return generation_bytes(run, {"data/length_max": 40}, shape, 0, 4) / (2 * 16 * 4)

    assert tokens() == 8 * 100
    assert tokens(rollouts="overlap", max_staleness=1) == 16 * 100
    assert tokens(rollouts="overlap", max_staleness=4) == 20 * 100  # decode_batch_size
    assert tokens(rollouts="async", max_staleness=4) == 0


def test_a_plan_whose_weights_alone_dont_fit_is_an_error():
    (found,) = findings(RULES, CASES["PERF013"][0])
    assert found.severity == "info" and list(found.remedies[0].patch) == [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
    ]
    (found,) = findings(RULES, Told(facts=PLAN | {"system/memory_mb": 400.0}))
    assert found.severity == "error"


# ---------------------------------------------------------------- the estimate


def test_shapes_are_read_off_a_config():
    fields = {
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "intermediate_size": 384,
        "vocab_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    }
    expected = ModelSizes(hidden=128, layers=3, wide=384, vocabulary=16, cached=128, queries=128)
    assert model_sizes.model_sizes_of(fields) == expected
    experts = fields | {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
    assert model_sizes.model_sizes_of(experts).wide == 128


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer_in_full():
    shape = ModelSizes(hidden=8, layers=10, wide=16, vocabulary=100, cached=16)
    how = Kept(width=4, states=4, norms=True, mlps=True)
    # queries, what attention gives in two layouts, keys and values, gate and up, inputs of two norms
    layer = 5 * 4 * (3 * 8 + 16 + 2 * 16 + 2 * 8)
    backward = 5 * 4 * (14 * 8 + 4 * 16)  # of one layer
    again = layer + 5 * 4 * (2 * 16 + 4 * 8)  # what is between gate, up and the last projection; what norms compute
    assert step_memory.activation_bytes(shape, 5, how) == 10 * layer + backward
    assert step_memory.activation_bytes(shape, 5, how, checkpointing=True) == 10 * 5 * 4 * 8 + again + backward


def test_logits_are_kept_where_they_are_few_and_made_in_tiles_where_not():
    assert step_memory.logit_bytes(10, 100, tile=1000, targets=4, kept=4000) == 4000
    assert step_memory.logit_bytes(1000, 100, tile=3000, targets=4, kept=4000) == 6000
    assert (
        step_memory.logit_bytes(1000, 100, tile=1000, targets=4, kept=4000) == 3200
    )  # no fewer targets than four a tile


def test_many_rows_even_out_and_one_may_be_the_longest():
    assert step_memory.longest_batch(1, 20, 100) == 100
    assert step_memory.longest_batch(64, 20, 100) == 64 * 30


def config_of(**fields):
    return RunConfig(**fields)


def test_tokens_of_a_micro_batch_go_by_what_was_measured():
    measured = {"data/length_max": 40, "data/length_p50": 30}
    assert step_memory.tokens_of(config_of(max_length=1024, per_device_train_batch_size=4), {}) == 4 * 1024
    assert step_memory.tokens_of(config_of(max_length=1024, per_device_train_batch_size=4), measured) == 4 * 35
    assert step_memory.tokens_of(config_of(max_length=32, per_device_train_batch_size=4), measured) == 4 * 31
    assert step_memory.tokens_of(config_of(max_length=32, per_device_train_batch_size=4, packing=True), measured) == 128
    pairs = measured | {"data/length_ratio": 1.0}
    assert step_memory.tokens_of(config_of(per_device_train_batch_size=1), pairs) == 80
    completed = measured | {"plan/generations": 8}
    assert step_memory.tokens_of(config_of(per_device_train_batch_size=1, max_completion_length=10), completed) == 50


def test_a_budget_of_tokens_is_an_upper_bound():
    measured = {"data/length_max": 40, "data/length_p50": 40}
    few = config_of(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_tokens_per_micro_batch=1000)
    many = config_of(per_device_train_batch_size=2, gradient_accumulation_steps=50, max_tokens_per_micro_batch=1000)
    assert step_memory.tokens_of(few, measured) == 160
    assert step_memory.tokens_of(many, measured) == 1000


def test_the_peak_is_of_training_or_of_generation():
    parts = {"weights": 10.0, "optimizer": 20.0, "gradients": 10.0, "activations": 5.0, "generation": 12.0}
    assert memory.peak_mb(parts) == 45.0
    assert memory.peak_mb(parts | {"generation": 50.0}) == 80.0
    assert memory.in_words(parts).startswith("about 45 MB of memory at the peak of a process, estimated: weights 10, ")


def test_a_run_tells_its_estimate(config, tmp_path):
    run = ft_host.train(beside(config, "estimated"))
    facts = launch.RunFolder.open(run.folder).manifest["facts"]
    parts = [name for name in facts if name.startswith("plan/memory_") and name != "plan/memory_mb"]
    assert {"plan/memory_weights_mb", "plan/memory_optimizer_mb", "plan/memory_activations_mb"} <= set(parts)
    # Adam's two values for each weight, of a model that is trained whole
    assert math.isclose(facts["plan/memory_optimizer_mb"], 2 * facts["plan/memory_weights_mb"], abs_tol=0.1)
    assert facts["system/memory_mb"] > facts["plan/memory_weights_mb"]


# ---------------------------------------------------------------- when it runs out


def impossible() -> torch.Tensor:
    return torch.empty(2**50)


def test_errors_of_allocators_are_told_from_others():
    with pytest.raises(RuntimeError) as real:
        impossible()
    assert ran_out(real.value) and ran_out(MemoryError())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("out of memory"))


def test_the_innermost_phase_counts_and_other_errors_pass():
    with pytest.raises(OutOfMemory, match="memory ran out in generation of step 3") as told:
        with oom_context(memory.EVALUATION), oom_context(memory.GENERATION, 3):
            impossible()
    assert told.value.facts == {"watch/out_of_memory": "generation", "watch/out_of_memory_step": 3}
    with pytest.raises(RuntimeError, match="something else"), oom_context(memory.FORWARD):
        raise RuntimeError("something else")


def test_what_the_frames_held_is_let_go():
    class Held:
        alive = 0

        def __init__(self):
            Held.alive += 1

        def __del__(self):
            Held.alive -= 1

    def forward():
        activations = Held()
        impossible()
        return activations

    with pytest.raises(OutOfMemory), oom_context(memory.FORWARD):
        forward()
    assert Held.alive == 0


def test_mends_are_three_at_most_and_leave_out_what_is_done_already():
    config = RunConfig(per_device_train_batch_size=16)
    first, second, third = remedies_for(memory.BACKWARD, config)
    assert first.patch == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2} and first.safe
    assert first.why.startswith(
        "Lower per_device_train_batch_size from 16 to 8 and raise gradient_accumulation_steps from 1 to 2"
    )
    assert second.patch == {"gradient_checkpointing": True}
    assert third.patch == {"max_length": config.max_length // 2}
    one = RunConfig(per_device_train_batch_size=1, gradient_checkpointing=True, max_length=None)
    assert [list(remedy.patch)[:1] for remedy in remedies_for(memory.FORWARD, one)] == [["use_peft"], [], []]
    budget = RunConfig(max_tokens_per_micro_batch=4096)
    assert remedies_for(memory.FORWARD, budget)[0].patch == {"max_tokens_per_micro_batch": 2048}


def test_a_base_that_is_held_in_bfloat16_isnt_halved_again():
    def halves(config: RunConfig, **facts: str) -> bool:
        patches = [remedy.patch for remedy in remedies_for(memory.LOADING, config, facts)]
        return any(patch.get("dtype") == "bfloat16" for patch in patches)

    assert not halves(RunConfig(use_peft=True)) and not halves(RunConfig(use_peft=True, bf16=True, use_cpu=True))
    assert halves(RunConfig(use_peft=True), **{"plan/device": "cpu"}) and halves(RunConfig(use_peft=True, bf16=False))
    assert halves(RunConfig(use_peft=True, dtype="float32")) and halves(RunConfig())


@pytest.mark.parametrize("phase", REMEDIES)
def test_every_phase_has_something_to_try_whatever_was_tried(phase):
    tried = RunConfig(
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        decode_batch_size=1,
        max_completion_length=1,
        gradient_checkpointing=True,
        use_peft=True,
        dtype="bfloat16",
        optim="adafactor",
        max_length=32,
        distributed_strategy="fsdp2",
    )
    assert [remedy.patch for remedy in remedies_for(phase, tried)] == [{}]


def failing(monkeypatch, where, name, after=0):
    """Memory runs out in `where.name`, from the call number `after` + 1 on."""
    made, calls = getattr(where, name), iter(range(10**6))

    def fails(*args, **fields):
        return impossible() if next(calls) >= after else made(*args, **fields)

    monkeypatch.setattr(where, name, fails)


def ended(config, name, **changes):
    """The error of a run that fails for lack of memory, and its folder."""
    changed = beside(config, name, **changes)
    with pytest.raises(OutOfMemory) as told:
        ft_host.train(changed)
    return str(told.value), launch.RunFolder.open(changed.output_dir)


def test_a_forward_pass_without_memory_saves_what_was_learnt(config, monkeypatch):
    failing(monkeypatch, step, "loss_of", after=3)
    said, folder = ended(config, "forward", eval_on_start=False, gradient_accumulation_steps=1)
    assert "memory ran out in the forward pass of step 4" in said and "(1) Lower per_device_train_batch_size" in said
    assert "step-3 is intact" in said and folder.manifest["status"] == "failed"
    assert folder.manifest["facts"]["watch/out_of_memory"] == "the forward pass"
    found = [each for each in folder.read("findings.jsonl") if each["code"] == "SYS004"]
    assert found and found[0]["remedies"][0]["applicability"] == "safe"


def test_without_memory_for_the_model_there_is_no_checkpoint(config, monkeypatch):
    failing(monkeypatch, build, "load_policy")
    said, folder = ended(config, "loading")
    assert "memory ran out in loading the model" in said and "No checkpoint was written" in said
    assert folder.manifest["status"] == "refused"


def test_an_optimizer_step_without_memory_saves_nothing_new(config, monkeypatch):
    make = build.make_optimizer

    def made(*args):
        optimizer, done = make(*args), iter(range(10))
        optimizer.register_step_pre_hook(lambda *called: impossible() if next(done) == 2 else None)
        return optimizer

    monkeypatch.setattr(build, "make_optimizer", made)
    said, _ = ended(config, "update", save_steps=1)
    assert "memory ran out in the optimizer's step of step 3" in said and "step-2 is intact" in said


def test_completions_without_memory_are_generation_not_evaluation(config, monkeypatch, tmp_path):
    (tmp_path / "brief.py").write_text("def brief(completions, **kwargs):\n    return [0.0 for _ in completions]\n")
    failing(monkeypatch, backend, "complete")
    said, _ = ended(config, "completions", eval_reward=[f"{tmp_path / 'brief.py'}:brief"])
    assert "memory ran out in generation" in said and "(1) Lower decode_batch_size from 64 to 32" in said


def test_the_estimate_needs_no_torch():
    code = "import sys, ft_host.diagnostics.memory_remedies, ft_host.util.memory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
