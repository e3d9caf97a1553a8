"""What must not change the numbers of SDPO: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ft_sdpo.config import SDPOConfig

from ft_host.testing import assert_same, invariants, lines, rollouts_ahead, run_in, same_as_sync, small_tiles

TOLERANCE, ABSOLUTE = 1e-4, 1e-5  # the largest distance of two log-probs is round-off


@pytest.fixture
def config(make, rows) -> SDPOConfig:
    """Two rollouts of four prompts, four completions each, in two steps that are gone through once."""
    return make(rows, max_steps=4, generation_batch_size=16, train_sampling_strategy="random")


ONCE = {"generation_batch_size": 8, "max_steps": 2}
LORA = {"use_peft": True, "learning_rate": 1e-2}
FEEDBACK = {"include_environment_feedback": True, "environment_feedback_only_without_solution": True}
TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 20, "distillation_alpha": 0.5}
KINDS = {
    "two steps": {},
    "one step": ONCE,
    "two passes, feedback, top tokens": {"num_iterations": 2} | FEEDBACK | TOPK,
    "live, all logits": {"teacher_model_kind": "live", "distillation_mode": "full_logits"},
    "mixed": {"distillation_weight": 0.5, "scale_rewards": "batch"} | TOPK,
    "mixed, two passes, by rows": {
        "distillation_weight": 0.3,
        "num_iterations": 2,
        "loss_type": "grpo",
        "epsilon": 0.05,
    },
    "policy alone": {"distillation_weight": 0.0, "loss_type": "dr_grpo"},
    "lora": LORA,
    "lora, base, mixed": LORA | {"teacher_model_kind": "base", "distillation_weight": 0.5},
    "masked": {"mask_truncated_completions": True, "distillation_weight": 0.5, "max_completion_length": 96},
}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batch_split(config, kind):
    invariants.micro_batch_split(dataclasses.replace(config, **KINDS[kind]), rel=TOLERANCE, abs=ABSOLUTE)


def test_something_is_taught_and_not_everything(config):
    """Else the tests here would show less than they seem to."""
    found = lines(run_in(dataclasses.replace(config, **FEEDBACK, max_steps=8), "run"))
    shares = [line["self_distillation/reprompt_sample_fraction"] for line in found if "reward" in line]
    assert any(0 < share < 1 for share in shares)
    assert any(line.get("self_distillation/feedback_used_fraction", 0) > 0 for line in found)


def test_tiles(config):
    """Three tokens at a time, or all at once; some of them without a teacher."""
    mixed = dataclasses.replace(config, distillation_weight=0.5)
    whole = lines(run_in(mixed, "whole"))
    with small_tiles(3):
        assert_same(whole, lines(run_in(mixed, "tiles")), TOLERANCE, ABSOLUTE)


def test_row_order(config):
    invariants.row_order(config, abs=1e-6)


def test_rollouts_ahead(config):
    rollouts_ahead(config)


@pytest.mark.slow
def test_without_staleness_it_is_the_synchronous_run(config):
    same_as_sync(config)


def test_seeds(config):
    invariants.seeds(config)


def test_samples_show_what_the_teacher_was_asked(config):
    folder = run_in(dataclasses.replace(config, **FEEDBACK), "run")
    samples = [json.loads(line) for line in Path(folder, "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [each["reprompt"] for each in samples if each.get("reprompt")]
    assert asked and all("Correctly solve the original question." in each for each in asked)
    assert any("is odd" in each for each in asked), "what the reward function says of a completion"


def test_a_run_that_never_succeeds_teaches_nothing(config):
    """It goes on all the same: the next prompts may be easier."""
    found = lines(run_in(dataclasses.replace(config, success_reward_threshold=9.0), "run"))
    assert [line["loss"] for line in found] == [0.0] * 4 and [line["grad_norm"] for line in found] == [0.0] * 4
    assert found[0]["self_distillation/reprompt_sample_fraction"] == 0


def test_a_rank_without_anything_to_learn(config):
    """The loss is 0 and connected to all of the model, as the others' gradients are waited for."""
    from ft_sdpo.method import ft_collate, ft_loss

    from ft_host.testing import first_step

    run, _ = first_step(dataclasses.replace(config, generation_batch_size=8), "sdpo")
    run.rollouts = run.config.rollout_plan(1)
    row = {
        "group": 0,
        "prompt_ids": [9],
        "completion_ids": [20],
        "sampled": [False],
        "sampling_logps": [],
        "teacher_prompt_ids": [],
    }
    for rows in ([], [row, row]):
        batch = ft_collate(rows, run.tokenizer, run.config)
        run.totals = {"taught": 4}
        run.policy.zero_grad()
        found = ft_loss(run.policy, batch, run)
        loss = found.divide(run.totals)
        loss.backward()
        assert float(loss.detach()) == 0 and not found.metrics and batch.num_tokens == 0
        assert all(parameter.grad is not None for parameter in run.policy.parameters())


@pytest.mark.slow
@pytest.mark.nightly("lora", "live")
@pytest.mark.parametrize(
    "fields",
    [FEEDBACK, LORA | {"lora_dropout": 0.2}, {"teacher_model_kind": "live", "distillation_weight": 0.5}],
    ids=["ema", "lora", "live"],
)
def test_resume(config, fields):
    """Killed in the middle of a rollout: its completions, old log-probs and teacher are in the checkpoint."""
    invariants.resume(dataclasses.replace(config, max_steps=12, save_steps=5, num_iterations=3, **fields))


@pytest.mark.slow
@pytest.mark.nightly("ddp mixed", "fsdp2 live mixed", "ddp lora")
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp"},
        {"distributed_strategy": "ddp", "distillation_weight": 0.5, "scale_rewards": "batch"} | ONCE | {"max_steps": 4},
        {"distributed_strategy": "fsdp2"} | FEEDBACK,
        {
            "distributed_strategy": "fsdp2",
            "teacher_model_kind": "live",
            "distillation_weight": 0.5,
            "num_iterations": 2,
        },
        {"distributed_strategy": "ddp", "seed": 4} | LORA,  # a seed whose every step has something to learn from
    ],
    ids=["ddp", "ddp mixed", "fsdp2", "fsdp2 live mixed", "ddp lora"],
)
def test_process_count(config, fields):
    """Two processes sample the same completions, ask the same teacher, and have one gradient."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields), rel=TOLERANCE, abs=ABSOLUTE)
