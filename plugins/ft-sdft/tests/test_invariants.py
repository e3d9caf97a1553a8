"""What must not change the numbers of SDFT: the checks of ft_host.testing, on this method."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from ft_sdft.config import SDFTConfig

from ft_host.api import Segment, flat_batch
from ft_host.testing import assert_same, invariants, lines, rollouts_ahead, run_in, same_as_sync, small_tiles

TOLERANCE, ABSOLUTE = 1e-4, 2e-6


@pytest.fixture
def config(make, rows) -> SDFTConfig:
    """Two rollouts of eight prompts, two completions each, in two steps that are gone through once."""
    return make(
        rows,
        max_steps=4,
        per_device_train_batch_size=8,
        num_generations=2,
        generation_batch_size=16,
        train_sampling_strategy="random",
    )


ONCE = {"generation_batch_size": 8, "max_steps": 2}
LORA = {"use_peft": True, "learning_rate": 1e-2}
EMA = {"teacher_model_kind": "ema", "teacher_update_rate": 0.5}
KINDS = {
    "two steps": {},
    "one step": ONCE,
    "two passes, all logits": {"num_iterations": 2, "distillation_mode": "full_logits", "distillation_alpha": 0.0},
    "sampled tokens": {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
    "ema": EMA,
    "live": {"teacher_model_kind": "live", "distillation_add_tail": True, "distillation_topk": 20},
    "lora": LORA,
    "lora, ema": LORA | EMA,
    "skipped": {"num_loss_tokens_to_skip": 3, "generate_from_teacher": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batch_split(config, kind):
    invariants.micro_batch_split(dataclasses.replace(config, **KINDS[kind]), rel=TOLERANCE, abs=ABSOLUTE)


def test_tiles(config):
    """Three tokens at a time, or all at once."""
    whole = lines(run_in(config, "whole"))
    with small_tiles(3):
        assert_same(whole, lines(run_in(config, "tiles")), TOLERANCE, ABSOLUTE)


def test_row_order(config):
    invariants.row_order(config, abs=1e-6)


def test_rollouts_ahead(config):
    rollouts_ahead(config)


@pytest.mark.slow
def test_without_staleness_it_is_the_synchronous_run(config):
    same_as_sync(config)


def test_seeds(config):
    invariants.seeds(config)


@pytest.mark.parametrize("fields", [{}, EMA, {"teacher_model_kind": "live"}], ids=["base", "ema", "live"])
def test_all_teachers_begin_as_the_student(config, fields):
    """The first line is the same, whoever teaches, with LoRA and without; the next ones aren't."""
    fields = ONCE | {"max_steps": 3} | fields
    plain = lines(run_in(dataclasses.replace(config, **ONCE | {"max_steps": 3}), "plain"))
    for name, more in (("whole", {}), ("lora", {"use_peft": True, "learning_rate": 1e-2})):
        found = lines(run_in(dataclasses.replace(config, **fields | more), name))
        assert found[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
        if more or len(fields) > 2:
            assert found[2]["loss"] != pytest.approx(plain[2]["loss"], rel=1e-5)


def test_without_a_demonstration_there_is_nothing_to_learn(make, rows):
    """The teacher's prompt is the student's: no divergence, no gradient, until a teacher that stays is left behind."""
    bare = [row | {"privileged_context": ""} for row in rows]
    config = make(bare, teacher_prompt_template="{privileged_context}{prompt}", teacher_model_kind="live")
    for line in lines(run_in(config, "run")):
        assert abs(line["loss"]) < 1e-8 and line["self_distillation/teacher_logp_difference"] < 1e-5
        assert line["self_distillation/empty_context_fraction"] == 1


def test_the_teacher_is_asked_about_the_same_tokens(config):
    """The second batch has the same targets in the same order, behind prompts that are computed once a group."""
    from ft_sdft.method import ft_collate

    rows = [
        {
            "group": group,
            "prompt_ids": [9, 10 + group],
            "teacher_prompt_ids": [9, 10 + group, 40, 41],
            "completion_ids": [50 + group, 60 + index],
            "sampled": [index > 0, True],
            "sampling_logps": [-1.0] * (1 + index),
        }
        for group in range(2)
        for index in range(2)
    ]
    batch = ft_collate(rows, None, config)
    teacher = batch.linked["teacher"]
    assert torch.equal(batch.targets, teacher.targets) and torch.equal(batch.rows, teacher.rows)
    assert batch.lengths == [2, 2, 2] * 2 and teacher.lengths == [4, 2, 2] * 2
    assert batch.counts == {"rows": 4, "trained": 4, "tokens": 6}
    alone = [Segment(input_ids=[9, 10, 40, 41, 50, 60], labels=[-100] * 5 + [60], row=0)]
    expected = flat_batch(alone, num_rows=1)
    assert int(expected.position_ids[expected.sources[0]]) == int(teacher.position_ids[teacher.sources[0]]) == 4


@pytest.mark.slow
@pytest.mark.nightly("lora", "live")
@pytest.mark.parametrize(
    "fields", [EMA, LORA | EMA | {"lora_dropout": 0.2}, {"teacher_model_kind": "live"}], ids=["ema", "lora", "live"]
)
def test_resume(config, fields):
    """Killed in the middle of a rollout: its completions, old log-probs and teacher are in the checkpoint."""
    invariants.resume(dataclasses.replace(config, max_steps=12, save_steps=5, num_iterations=3, **fields))


@pytest.mark.slow
@pytest.mark.nightly("fsdp2", "fsdp2 ema", "fsdp2 lora ema")
@pytest.mark.parametrize(
    "fields",
    [
        {"distributed_strategy": "ddp"} | EMA,
        {"distributed_strategy": "fsdp2"},
        {"distributed_strategy": "fsdp2"} | EMA,
        {"distributed_strategy": "fsdp2", "teacher_model_kind": "live", "num_iterations": 2},
        {"distributed_strategy": "fsdp2"} | LORA | EMA,
    ],
    ids=["ddp ema", "fsdp2", "fsdp2 ema", "fsdp2 live", "fsdp2 lora ema"],
)
def test_process_count(config, fields):
    """Two processes sample the same completions, ask the same teacher, and have one gradient."""
    invariants.process_count(dataclasses.replace(config, save_steps=2, **fields), rel=TOLERANCE, abs=ABSOLUTE)
