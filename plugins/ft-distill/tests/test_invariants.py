"""What must not change the numbers of distill and gkd: the checks of ft_host.testing, on both."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from ft_distill import gkd
from ft_distill.config import DistillConfig, GKDConfig

from ft_host.testing import (
    assert_same,
    invariants,
    lines,
    rollouts_ahead,
    run_in,
    same_as_sync,
    save_tiny,
    small_tiles,
    tiny_llama,
    tiny_tokenizer,
    write_rows,
)

TOLERANCE, ABSOLUTE = 1e-4, 2e-6
LORA = {"use_peft": True, "learning_rate": 1e-2}


@pytest.fixture
def distill(make, prompts) -> DistillConfig:
    """Two rollouts of eight prompts, two completions each, in two steps that are gone through once."""
    return make(
        DistillConfig,
        prompts,
        max_steps=4,
        num_generations=2,
        generation_batch_size=16,
        train_sampling_strategy="random",
    )


@pytest.fixture
def mixed(make, chats) -> GKDConfig:
    """A share of the prompts is the policy's to complete; the others have the completion of their row."""
    return make(GKDConfig, chats, max_steps=4, train_sampling_strategy="random")


KINDS = {
    "distill, two steps": {},
    "distill, one step": {"generation_batch_size": 8, "max_steps": 2},
    "distill, two passes": {"num_iterations": 2, "beta": 0.5},
    "distill, lora": LORA,
    "gkd, mixed": {},
    "gkd, of the data": {"lmbda": 0.0, "beta": 0.0, "temperature": 0.6},
    "gkd, by the teacher": {"lmbda": 0.3, "seq_kd": True},
    "gkd, lora": LORA | {"beta": 1.0},
}


@pytest.fixture
def config(request, distill, mixed):
    kind = request.param
    return dataclasses.replace(distill if kind.startswith("distill") else mixed, **KINDS[kind])


ALL = pytest.mark.parametrize("config", KINDS, indirect=True)


@ALL
def test_micro_batch_split(config):
    invariants.micro_batch_split(config, rel=TOLERANCE, abs=ABSOLUTE)


@pytest.mark.parametrize("config", ["distill, two steps", "gkd, mixed"], indirect=True)
def test_tiles(config):
    """Three tokens at a time, or all at once."""
    whole = lines(run_in(config, "whole"))
    with small_tiles(3):
        assert_same(whole, lines(run_in(config, "tiles")), TOLERANCE, ABSOLUTE)


@pytest.mark.parametrize("config", ["distill, two steps", "gkd, mixed", "gkd, by the teacher"], indirect=True)
def test_rollouts_ahead(config):
    rollouts_ahead(config)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["distill, two steps", "gkd, mixed", "gkd, by the teacher"], indirect=True)
def test_without_staleness_it_is_the_synchronous_run(config):
    same_as_sync(config)


@pytest.mark.parametrize("config", ["distill, two steps", "gkd, mixed"], indirect=True)
def test_seeds(config):
    invariants.seeds(config)


def test_the_order_of_rows(mixed):
    """Of what gkd is given of the data: held-out rows are laid out as they are."""
    config = dataclasses.replace(mixed, lmbda=0.0)
    invariants.row_order(config, "gkd")


# ---------------------------------------------------------------- where completions come from


def test_without_a_share_nothing_is_generated(make, chats, backend, tmp_path):
    """Not even to try the sampler out. Only evaluation completes prompts."""
    import importlib

    name = backend()
    config = make(GKDConfig, chats, lmbda=0.0, backend=name, max_steps=3)
    found = lines(run_in(config, "run"))
    asked = importlib.import_module(f"fake_{name}").ASKED
    assert asked == []
    for line in found:
        assert line["distillation/on_policy_share"] == 0
        assert not [name for name in line if name.startswith(("completions/", "sampling/"))]


def test_the_teacher_completes_prompts(make, chats, backend):
    """With seq_kd: those that the policy doesn't."""
    import importlib

    name = backend()
    run_in(make(GKDConfig, chats, lmbda=0.0, seq_kd=True, backend=name, max_steps=2), "run")
    asked = importlib.import_module(f"fake_{name}").ASKED
    assert asked == [("teacher", 8)] * 2


def test_what_the_teacher_says_is_its_own(make, chats):
    """The built-in backend: greedy, as all sampling is at a temperature of next to nothing."""
    from transformers import AutoModelForCausalLM

    config = make(GKDConfig, chats, lmbda=0.0, seq_kd=True, temperature=1e-4, max_steps=1, logged_completions=8)
    folder = run_in(config, "run")
    [sample, *_] = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sample["extra"] == {"by": "teacher"}
    teacher, tokenizer = AutoModelForCausalLM.from_pretrained(config.teacher_model_name_or_path), tiny_tokenizer()
    ids = tokenizer.apply_chat_template(sample["prompt"], add_generation_prompt=True, return_dict=False)
    size = len(ids)
    for _ in range(config.max_completion_length):
        with torch.no_grad():
            ids.append(int(teacher(torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids[size:], skip_special_tokens=True).startswith(sample["completion"])


def test_the_share_is_drawn_for_each_prompt():
    """By nothing but seed, rollout and prompt: the same in every process, and in a run that goes on."""
    config = GKDConfig(lmbda=0.3)
    drawn = [[gkd.on_policy(config, rollout, group) for group in range(50)] for rollout in range(40)]
    assert abs(sum(map(sum, drawn)) / 2000 - 0.3) < 0.04
    assert drawn[0] != drawn[1] and drawn[0] == [gkd.on_policy(config, 0, group) for group in range(50)]
    assert not any(gkd.on_policy(GKDConfig(lmbda=0.0), 0, group) for group in range(500))
    assert all(gkd.on_policy(GKDConfig(lmbda=1.0), 0, group) for group in range(500))
    more = GKDConfig(lmbda=0.6)  # those that were drawn stay drawn
    assert all(gkd.on_policy(more, 0, group) for group in range(50) if drawn[0][group])


def test_losses_by_where_completions_come_from(mixed):
    for line in lines(run_in(mixed, "run", max_steps=2)):
        assert 0 < line["distillation/on_policy_share"] < 1
        both = sorted((line["distillation/on_policy_loss"], line["distillation/off_policy_loss"]))
        assert both[0] < line["loss"] < both[1]
        assert (
            line["sampling/sampling_logp_difference/mean"] < 1e-5 and 0 <= line["distillation/teacher_agreement"] <= 1
        )
        assert line["distillation/divergence"] == pytest.approx(line["loss"], rel=1e-6)


# ---------------------------------------------------------------- evaluation


def test_held_out_divergence(mixed, chats, tmp_path):
    """Of the completions of held-out rows, whatever the size of a batch, and beside it completions by the policy."""
    held_out = write_rows(tmp_path / "held_out.jsonl", chats[:7])
    config = dataclasses.replace(mixed, eval_dataset=str(held_out), eval_steps=2)
    found = lines(run_in(config, "run"), "eval")
    small = lines(run_in(config, "small", per_device_eval_batch_size=2), "eval")
    assert_same(found, small, TOLERANCE, ABSOLUTE)
    assert [line["step"] for line in found] == [2, 4]
    for line in found:
        assert (
            line["eval_loss"] == pytest.approx(line["eval_distillation/divergence"], rel=1e-6) and line["eval_loss"] > 0
        )
        assert line["eval_completions/mean_length"] > 0
    first = lines(run_in(config, "first", max_steps=1, eval_on_start=True), "eval")[0]
    data = lines(
        run_in(
            dataclasses.replace(config, train_sampling_strategy="sequential"),
            "data",
            lmbda=0.0,
            dataset=str(held_out),
            per_device_train_batch_size=7,
            max_steps=1,
        )
    )
    assert first["eval_loss"] == pytest.approx(data[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("fields", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_held_out_prompts_alone(make, prompts, tmp_path, fields):
    held_out = write_rows(tmp_path / "held_out.jsonl", prompts[:4])
    config = make(GKDConfig, prompts, eval_dataset=str(held_out), eval_steps=1, max_steps=1, **fields)
    [line] = lines(run_in(config, "run"), "eval")
    assert "eval_loss" not in line and line["eval_completions/mean_length"] > 0


@pytest.mark.parametrize("method", ["distill", "gkd"])
def test_rewards_are_watched(method, make, chats, tmp_path):
    """Nothing is learnt from them."""
    (tmp_path / "rewards.py").write_text("def length(completions, **_):\n    return [1.0 for _ in completions]\n")
    config = make(DistillConfig if method == "distill" else GKDConfig, chats, max_steps=2)
    plain = lines(run_in(config, "plain"))
    paid = lines(run_in(config, "paid", reward=[f"{tmp_path / 'rewards.py'}:length"]))
    assert [line["loss"] for line in plain] == [line["loss"] for line in paid]
    assert all(line["reward"] == 1 and line["rewards/length/mean"] == 1 for line in paid)


# ---------------------------------------------------------------- teachers of other sizes


@pytest.mark.parametrize("rows", [{"student": 300, "teacher": 256}, {"student": 256, "teacher": 300}], ids=str)
def test_a_teacher_with_other_padding(make, prompts, tmp_path, rows):
    """Embeddings of a family differ in size for the same tokens; what is no token is in no divergence."""
    places = {
        name: str(save_tiny(tmp_path / name, tiny_llama(seed=seed, vocab_size=size), tiny_tokenizer()))
        for seed, (name, size) in enumerate(rows.items())
    }
    config = make(
        DistillConfig,
        prompts,
        model=places["student"],
        teacher_model_name_or_path=places["teacher"],
        learning_rate=1e-2,
    )
    found = lines(run_in(config, "run"))
    assert found[-1]["loss"] < found[0]["loss"]


def test_the_same_weights_teach_nothing(make, prompts, llama, tmp_path):
    """No divergence and no gradient from a copy of the student."""
    copy = save_tiny(tmp_path / "copy", tiny_llama(), tiny_tokenizer())
    for line in lines(run_in(make(DistillConfig, prompts, teacher_model_name_or_path=str(copy), max_steps=1), "run")):
        assert abs(line["loss"]) < 1e-7 and line["distillation/teacher_agreement"] == 1 and line["grad_norm"] < 1e-5


# ---------------------------------------------------------------- other processes


@pytest.mark.slow
@pytest.mark.nightly("distill, two passes", "gkd, mixed")
@pytest.mark.parametrize("config", ["distill, two passes", "gkd, mixed", "gkd, by the teacher"], indirect=True)
def test_resume(config):
    """Killed in the middle: completions and whose they are come from the checkpoint, or are drawn again."""
    invariants.resume(dataclasses.replace(config, max_steps=12, save_steps=5))


@pytest.mark.slow
@pytest.mark.nightly("distill, lora-fsdp2", "gkd, mixed-ddp")
@pytest.mark.parametrize(
    ("config", "strategy"),
    [
        ("distill, two steps", "ddp"),
        ("distill, lora", "fsdp2"),
        ("gkd, mixed", "ddp"),
        ("gkd, by the teacher", "fsdp2"),
    ],
    indirect=["config"],
)
def test_process_count(config, strategy):
    """Two processes sample the same completions, ask the same teacher, and have one gradient."""
    config = dataclasses.replace(config, save_steps=2, distributed_strategy=strategy)
    invariants.process_count(config, rel=TOLERANCE, abs=ABSOLUTE)
