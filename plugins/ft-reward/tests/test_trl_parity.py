"""The numbers of this package beside those of TRL's RewardTrainer, on the same model with the same head, and rows."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ft_reward.config import RewardConfig

from ft_host.testing import (
    as_classifier,
    assert_parity,
    assert_same_training,
    lines,
    run_in,
    save_tiny,
    tiny_qwen,
    tiny_tokenizer,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = ("center_rewards_coefficient", "max_length")
# Scores go through 0, where a relative difference says nothing: of these the absolute one is held.
METRICS = ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")


def trainer_of(config: RewardConfig) -> Any:
    """TRL's trainer for what `config` says."""
    import trl
    from transformers import AutoTokenizer

    return trl.RewardTrainer(
        model=trl_model(config, "SEQ_CLS"),
        args=trl.RewardConfig(**trl_arguments(config, *OWN)),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model),
    )


def assert_metrics(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for name in METRICS:
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), f"step {mine['step']}: {name}"


def assert_same_as_trl(config: RewardConfig) -> list[dict[str, Any]]:
    """Both trainings, compared step by step and by the weights at the end. Gives ours."""
    folder = run_in(config, "ours")
    trainer = trainer_of(config)
    theirs = trl_trajectory(trainer)
    ours = lines(folder)
    assert len(ours) == config.max_steps
    assert_parity(ours, theirs)
    assert_metrics(ours, theirs)
    assert len({line["mean_reward"] for line in ours}) == len(ours), "nothing was learned"
    assert_same_training(config.model, folder / "model", trainer.model)
    return ours


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """A pair without a prompt of its own: whole texts, or whole conversations."""
    return {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


# ---------------------------------------------------------------- one micro-batch a step: everything is equal


def test_bradley_terry(make, rows):
    assert_same_as_trl(make(rows))


def test_with_weight_decay_and_a_schedule(make, rows):
    assert_same_as_trl(make(rows, weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=2, max_grad_norm=0.0))


def test_margins(make, rows):
    rows = [row | {"margin": 0.25 * (index % 4) - 0.1} for index, row in enumerate(rows)]
    ours = assert_same_as_trl(make(rows))
    assert ours[0]["loss"] != pytest.approx(lines(run_in(make([*map(without_margin, rows)]), "none"))[0]["loss"])


def without_margin(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "margin"}


@pytest.mark.parametrize("coefficient", [0.01, 0.5])
def test_centering(make, rows, coefficient):
    assert_same_as_trl(make(rows, center_rewards_coefficient=coefficient))


def test_margins_and_centering(make, rows):
    rows = [row | {"margin": 0.5} for row in rows]
    assert_same_as_trl(make(rows, center_rewards_coefficient=0.1))


def test_implicit_prompts(make, rows):
    assert_same_as_trl(make([whole(row) for row in rows]))


def test_conversations(make, chats):
    assert_same_as_trl(make(chats))


def test_conversations_with_implicit_prompts(make, chats):
    assert_same_as_trl(make([whole(row) for row in chats]))


def test_tokens(make):
    rows = [{"chosen_ids": [5 + i, 9, 40 + i, 77], "rejected_ids": [5 + i, 9, 41, 8, 90 + i]} for i in range(24)]
    assert_same_as_trl(make(rows))


def test_tied_embeddings(make, rows, tmp_path):
    model = save_tiny(tmp_path / "qwen", as_classifier(tiny_qwen()), tiny_tokenizer())
    assert_same_as_trl(make(rows, model=str(model)))


def test_lora(make, rows, adapter):
    """Adapter and head are trained; both start from one adapter."""
    assert_same_as_trl(make(rows, model=str(adapter), use_peft=True, weight_decay=0.1))


def test_padding_that_is_eos(make, rows, tmp_path):
    """Of texts, whose EOS then counts as padding, and of conversations, in which a turn's end is that token."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = save_tiny(tmp_path / "eos", as_classifier(tiny_qwen()), tokenizer)
    assert_same_as_trl(make(rows, model=str(model)))


def test_conversations_with_padding_that_is_eos(make, chats, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model = save_tiny(tmp_path / "eos", as_classifier(tiny_qwen()), tokenizer)
    assert_same_as_trl(make(chats, model=str(model)))


# ---------------------------------------------------------------- accumulation


def test_accumulation(make, rows):
    """Four pairs at once and one by one, here and in TRL: loss and gradient are the same four times."""
    config = make(rows, center_rewards_coefficient=0.1)
    at_once = lines(run_in(config, "4x1"))
    split_config = dataclasses.replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    split = lines(run_in(split_config, "1x4"))
    assert_parity(split, at_once)
    assert_metrics(split, at_once)
    assert_parity(at_once, trl_trajectory(trainer_of(config)))
    theirs = trl_trajectory(trainer_of(split_config))
    assert_parity(split, theirs)
    # TRL's smallest reward is the mean of the micro-batches' smallest ones; ours is the step's
    assert theirs[0]["min_reward"] > split[0]["min_reward"] + 1e-3


# ---------------------------------------------------------------- where they part


def test_rows_that_are_too_long_are_cut_where_trl_drops_them(make, rows):
    """The first pair is cut here, and the row says so; TRL goes on to the next one."""
    tokenizer = tiny_tokenizer()
    long = {"prompt": "a b", "chosen": " c" * 10 + " d" * 10, "rejected": " e"}
    config = make([long, *rows], max_length=16, per_device_train_batch_size=1, max_steps=1)
    ours = lines(run_in(config, "ours"))[0]
    said = [json.loads(line)["text"] for line in (Path(config.output_dir) / "ours/events.jsonl").open()]
    assert "1 rows were cut at max_length 16" in said
    theirs = trl_trajectory(trainer_of(config))[0]
    prompt, chosen, rejected = (tokenizer(long[name])["input_ids"] for name in ("prompt", "chosen", "rejected"))
    rejected.append(tokenizer.eos_token_id)
    assert len(prompt + chosen) > 16
    expected = by_hand(config, (prompt + chosen)[:16], prompt + rejected)
    assert ours["loss"] == pytest.approx(expected, rel=1e-5)
    short = next(
        row
        for row in rows
        if max(len(tokenizer(row["prompt"] + row[n])["input_ids"]) for n in ("chosen", "rejected")) < 16
    )
    ids = [
        tokenizer(short["prompt"] + short[name])["input_ids"] + [tokenizer.eos_token_id]
        for name in ("chosen", "rejected")
    ]
    assert theirs["loss"] == pytest.approx(by_hand(config, *ids), rel=1e-5)
    assert theirs["loss"] != pytest.approx(ours["loss"], rel=1e-3)


def by_hand(config: RewardConfig, chosen: list[int], rejected: list[int]) -> float:
    """The loss of one pair from the model's own logits, each text alone."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(config.model)
    with torch.no_grad():
        scores = [float(model(input_ids=torch.tensor([ids])).logits) for ids in (chosen, rejected)]
    return math.log1p(math.exp(scores[1] - scores[0]))
