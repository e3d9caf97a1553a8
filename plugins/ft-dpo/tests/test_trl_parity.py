"""The numbers of this package beside those of TRL's DPOTrainer: five steps on the same model, rows and settings.

Loss, gradient norm and every metric. Where TRL is wrong or its number depends on how rows are batched, both numbers are
shown, and ours is compared with one computed by hand.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_dpo.config import LOSS_TYPES, DPOConfig

from ft_host.testing import (
    TOLERANCES,
    assert_parity,
    assert_same,
    invariants,
    lines,
    method_hooks,
    relative,
    run_in,
    save_tiny,
    tiny_llama,
    tiny_moe,
    tiny_tokenizer,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
    write_rows,
)

OWN = (
    "loss_type",
    "beta",
    "label_smoothing",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "ld_alpha",
    "use_weighting",
    "discopop_tau",
    "max_length",
    "truncation_mode",
    "sync_ref_model",
    "ref_model_mixup_alpha",
    "ref_model_sync_steps",
    "router_aux_loss_coef",
)
METRICS = (
    "entropy",
    "mean_token_accuracy",
    "logits/chosen",
    "logits/rejected",
    "logps/chosen",
    "logps/rejected",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
)
# Rewards and mean logits are differences of larger numbers, and may be next to 0: a log-prob of -50 is held to 5e-6.
ABSOLUTE = 5e-6


def trainer_of(config: DPOConfig, reference: Path | None = None, **more: Any) -> Any:
    """TRL's trainer for what `config` says. `more` overrides TRL's arguments."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return trl.DPOTrainer(
        model=trl_model(config),
        ref_model=AutoModelForCausalLM.from_pretrained(reference) if reference else None,
        args=trl.DPOConfig(**(trl_arguments(config, *OWN) | {"loss_weights": config.loss_weights or None} | more)),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model),
    )


def assert_same_metrics(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], **tolerances: float) -> None:
    assert_parity(ours, theirs, **tolerances)
    for a, b in zip(ours, theirs, strict=True):
        # while policy and reference are the same, which of two rewards of 0 is larger is up to round-off
        undecided = max(abs(a["rewards/chosen"]), abs(a["rewards/rejected"])) < ABSOLUTE
        for name in METRICS[:-1] if undecided else METRICS:
            assert math.isclose(a[name], b[name], rel_tol=1e-4, abs_tol=ABSOLUTE), (a["step"], name, a[name], b[name])
    assert set(theirs[0]) - set(ours[0]) <= {"total_flos", "train_loss"}, "a metric of TRL's that we don't have"


def assert_same_as_trl(config: DPOConfig, *, reference: Path | None = None, **tolerances: float) -> list[dict]:
    """Both trainings, compared step by step. Gives ours."""
    ours = lines(run_in(config, "ours"))
    assert len(ours) == config.max_steps
    assert_same_metrics(ours, trl_trajectory(trainer_of(config, reference)), **tolerances)
    return ours


# ---------------------------------------------------------------- losses


def smoothing(name: str) -> float:
    return {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}.get(name, 0.0)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_loss(make, rows, name):
    assert_same_as_trl(make(rows, loss_type=name, label_smoothing=smoothing(name)))


@pytest.mark.parametrize(
    ("names", "weights"),
    [(["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]), (["sigmoid", "sft"], [])],
    ids=["MPO", "RPO"],
)
def test_several_losses(make, rows, names, weights):
    assert_same_as_trl(make(rows, loss_type=names, loss_weights=weights))


@pytest.mark.parametrize(
    "fields",
    [
        {"f_divergence_type": "forward_kl"},
        {"f_divergence_type": "js_divergence", "loss_type": "ipo"},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0, "loss_type": "hinge"},
    ],
    ids=["forward KL", "JS", "alpha 0.3", "alpha 1"],
)
def test_f_divergence(make, rows, fields):
    """At a learning rate at which the exponentials of forward KL stay small."""
    assert_same_as_trl(make(rows, learning_rate=1e-4, **fields))


@pytest.mark.parametrize("fields", [{}, {"loss_type": "ipo"}], ids=["sigmoid", "ipo"])
def test_ld_alpha(make, rows, fields):
    assert_same_as_trl(make(rows, ld_alpha=0.4, **fields))


@pytest.mark.parametrize("name", ["sigmoid", "bco_pair"])
def test_weighting(make, rows, name):
    """Weights are exponentials of means over tokens, of this model's 1e-3: their round-off is that of the log-probs."""
    assert_same_as_trl(make(rows, use_weighting=True, loss_type=name))


# ---------------------------------------------------------------- rows


def whole(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


def test_implicit_prompt(make, rows):
    assert_same_as_trl(make([whole(row) for row in rows]))


def test_conversations(make, chats):
    assert_same_as_trl(make(chats))


def test_conversations_with_an_implicit_prompt(make, chats):
    assert_same_as_trl(make([whole(row) for row in chats]))


def test_tools(make, chats, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}<|system|>{% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}<|end|>{% endif %}"
        + tokenizer.chat_template
    )
    model = save_tiny(tmp_path / "tools", tiny_llama(), tokenizer)
    tool = {"type": "function", "function": {"name": "three_apples", "description": "", "parameters": {}}}
    with_tools = [row | {"tools": json.dumps([tool])} for row in chats]
    ours = assert_same_as_trl(make(with_tools, model=str(model)))
    without = lines(run_in(make(chats, model=str(model)), "without"))
    assert ours[0]["num_tokens"] > without[0]["num_tokens"], "the tools are not in the prompt"


def test_truncation(make, rows):
    """Prompts stay whole, completions lose their ends; prompts that leave no room are left out."""
    config = make(rows, max_length=24, max_dropped_share=0.5)
    assert_same_as_trl(config)


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("ahead", [True, False])
def test_live_and_precomputed_reference(make, rows, ahead):
    """TRL holds its reference; ours is held, or asked once ahead."""
    assert_same_as_trl(make(rows, precompute_ref_log_probs=ahead))


@pytest.mark.parametrize("ahead", [True, False])
def test_another_model_as_the_reference(make, rows, tmp_path, ahead):
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3), tiny_tokenizer())
    config = make(rows, ref_model=str(other), precompute_ref_log_probs=ahead)
    ours = assert_same_as_trl(config, reference=other)
    assert abs(ours[0]["rewards/margins"]) > 1e-3, "the reference was the model itself"


@pytest.mark.parametrize("ahead", [None, True], ids=["live", "ahead"])
def test_lora_from_an_adapter(make, rows, adapter, ahead):
    """The reference is a frozen copy of the adapter that training starts from, not the model under it."""
    config = make(rows, model=str(adapter), use_peft=True, precompute_ref_log_probs=ahead, learning_rate=1e-2)
    ours = assert_same_as_trl(config)
    assert ours[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert abs(ours[-1]["rewards/margins"]) > 1e-3


def test_new_lora(make, rows, tmp_path):
    """The reference is the model without its adapter, live or ahead. TRL starts from the adapter that ours draws: it
    keeps a copy of that as the reference, whose B is zero. (An adapter of another seed has an element whose gradient is
    round-off, which Adam moves by the whole rate.)"""
    config = make(rows, use_peft=True, learning_rate=1e-2, seed=1)
    ours = lines(run_in(config, "live"))
    ahead = lines(run_in(config, "ahead", precompute_ref_log_probs=True))
    run, _ = invariants.first_step(config, "dpo")
    run.policy.model.save_pretrained(tmp_path / "zero")
    run.tokenizer.save_pretrained(tmp_path / "zero")
    theirs = trl_trajectory(trainer_of(dataclasses.replace(config, model=str(tmp_path / "zero"))))
    for each in (ours, ahead):
        assert_same_metrics(each, theirs)
    assert abs(ours[-1]["rewards/margins"]) > 1e-3


def test_sync_ref_model(make, rows):
    fields = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
    ours = assert_same_as_trl(make(rows, **fields))
    fixed = lines(run_in(make(rows), "fixed"))
    assert_same(ours[:2], fixed[:2], rel=1e-5, abs=ABSOLUTE, skip=("rewards/accuracies",))
    assert abs(ours[2]["rewards/margins"] - fixed[2]["rewards/margins"]) > 1e-4


def test_evaluation(make, rows, tmp_path):
    """Before and after training, with the log-probs of the reference made ahead for those rows too."""
    file = write_rows(tmp_path / "eval.jsonl", rows[:7])
    config = make(rows, eval_dataset=str(file), eval_on_start=True, per_device_eval_batch_size=2)
    before, after = lines(run_in(config, "ours"), "eval")
    assert before["eval_loss"] == pytest.approx(math.log(2), rel=1e-6)
    from datasets import Dataset

    trainer = trainer_of(config, per_device_eval_batch_size=7)
    trainer.train()
    theirs = trainer.evaluate(Dataset.from_list(rows[:7]))
    for name in ("loss", *METRICS):
        assert after[f"eval_{name}"] == pytest.approx(theirs[f"eval_{name}"], rel=1e-5, abs=ABSOLUTE), name


# ---------------------------------------------------------------- micro-batches


def test_accumulation(make, rows):
    """A step of four micro-batches of one pair is the step of one micro-batch of four, metrics too; TRL's loss is the
    same either way."""
    config = make(rows)
    ours = assert_same_as_trl(config)
    split = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    assert_same(ours, lines(run_in(split, "split")), rel=2e-5, abs=ABSOLUTE, skip=("rewards/accuracies",))
    assert_parity(ours, trl_trajectory(trainer_of(split)))


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "sft"])
def test_where_the_split_changes_trls_loss(make, rows, name, tmp_path):
    """TRL sorts the pairs of a micro-batch, and takes the mean of a micro-batch's tokens: cut otherwise, it minimises
    something else. Ours sorts and counts over the step. With another model as the reference, whose order of the pairs
    isn't the policy's."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3), tiny_tokenizer())
    config = make(rows, loss_type=name, ref_model=str(other))
    split = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    ours, ours_split = lines(run_in(config, "ours")), lines(run_in(split, "split"))
    assert_same(ours, ours_split, rel=2e-5, abs=ABSOLUTE)
    theirs, theirs_split = (trl_trajectory(trainer_of(each, other)) for each in (config, split))
    assert_same_metrics(ours, theirs)
    assert max(relative(a["loss"], b["loss"]) for a, b in zip(theirs, theirs_split, strict=True)) > 1e-3


# ---------------------------------------------------------------- where TRL is wrong


@pytest.mark.parametrize("name", ["hinge", "sft"])
def test_weighting_crashes_in_trl(make, rows, name):
    """Theirs multiplies a tensor in place that autograd needs, or that is an expanded scalar. Ours by hand."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = make(rows, use_weighting=True, loss_type=name, max_steps=1)
    with pytest.raises(RuntimeError, match="in-?place|single memory location"):
        trl_trajectory(trainer_of(config))
    [ours] = lines(run_in(config, "ours"))

    model, tokenizer = (each.from_pretrained(config.model) for each in (AutoModelForCausalLM, AutoTokenizer))
    hook = method_hooks("dpo")
    total, count = 0.0, 0
    for row in rows[:4]:
        tokens = hook.ft_prepare(row=dict(row), tokenizer=tokenizer, config=config)
        weight, nll = 1.0, 0.0
        for completion in ("chosen", "rejected"):
            ids = tokens["prompt_ids"] + tokens[f"{completion}_ids"]
            start = len(tokens["prompt_ids"])
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            of_tokens = [float(logs[at - 1, ids[at]]) for at in range(start, len(ids))]
            alignment = [
                of_tokens[at - start] - float(logs[at - 1].exp().square().sum().log()) for at in range(start, len(ids))
            ]
            weight *= math.exp(sum(alignment) / len(alignment))
            if completion == "chosen":
                nll, size = -sum(of_tokens), len(of_tokens)
        # before the first update the margin is 0, so that each pair's hinge is 1
        total += weight * (nll if name == "sft" else 1.0)
        count += size if name == "sft" else 1
    assert ours["loss"] == pytest.approx(total / count, rel=1e-5)


def test_label_smoothing_is_ignored_by_trl(make, rows):
    """TRL takes it for sigmoid and trains as if it were 0. Ours refuses it, see test_config."""
    config = make(rows)
    smoothed = trl_trajectory(trainer_of(config, label_smoothing=0.3))
    assert_parity(trl_trajectory(trainer_of(config)), smoothed, **dict.fromkeys(TOLERANCES, 0.0))


def test_mixture_of_experts(make, rows, tmp_path):
    """TRL's loss holds the weighted load-balancing loss, ours is the method's alone with `aux_loss` beside it. The
    prompt, computed once or twice, enters that loss once for each completion."""
    model = save_tiny(tmp_path / "moe", tiny_moe())
    config = make(rows, model=str(model), router_aux_loss_coef=0.1)
    ours, theirs = lines(run_in(config, "ours")), trl_trajectory(trainer_of(config))
    summed = [line | {"loss": line["loss"] + 0.1 * line["aux_loss"]} for line in ours]
    assert_same_metrics(summed, theirs, aux_loss=1e-5)
