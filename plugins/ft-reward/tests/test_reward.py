"""The maths by hand, what becomes of rows, prompts computed once, and what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from ft_reward.config import RewardConfig
from ft_reward.method import (
    bradley_terry,
    ft_collate,
    ft_loss,
    ft_prepare,
    metrics,
    off_centre,
    score_place,
    shared_length,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ft_host.api import ConfigError, Drop, RowError
from ft_host.testing import RewardModel, beside, lines, load_policy, metric_values, run_in, tiny_tokenizer, whole_ids

TOKENIZER = tiny_tokenizer()
CPU = torch.device("cpu")


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


# ---------------------------------------------------------------- maths


def test_bradley_terry_by_hand():
    chosen, rejected, margins = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 1.0, 0.5]), torch.tensor([0.0, 0, 3])
    found = bradley_terry(chosen, rejected, margins)
    expected = [-log_sigmoid(1.0), -log_sigmoid(-2.0), -log_sigmoid(-3.0)]
    assert found.tolist() == pytest.approx(expected)
    assert found[0].item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_far_scores_overflow_nowhere():
    scores = torch.tensor([200.0], requires_grad=True)
    loss = bradley_terry(scores, torch.tensor([-200.0]), torch.zeros(1)) + bradley_terry(
        -scores, scores, torch.zeros(1)
    )
    loss.sum().backward()
    assert loss.item() == pytest.approx(400) and scores.grad.item() == pytest.approx(2)


def test_off_centre_by_hand():
    assert off_centre(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])).tolist() == [9.0, 0.0]


def test_loss_and_metrics_by_hand():
    """Two pairs of a step of four, one with a margin."""
    scores = torch.tensor([2.0, 1.0, -1.0, 1.5], requires_grad=True)
    batch = ft_collate(
        rows=[pair([5], [6], [7]), pair([5], [6], [7]) | {"margin": 0.5}], tokenizer=TOKENIZER, config=RewardConfig()
    )
    run = SimpleNamespace(config=RewardConfig(center_rewards_coefficient=0.1), totals={"pairs": 4})
    out = ft_loss(model=lambda batch, want: {"score": scores}, batch=batch, run=run)
    expected = (-log_sigmoid(1.0) - log_sigmoid(-3.0) + 0.1 * (9 + 0.25)) / 4
    assert out.divide(run.totals).item() == pytest.approx(expected)
    out.divide(run.totals).backward()
    slope = [1 / (1 + math.exp(1.0)), 1 / (1 + math.exp(-3.0))]  # sigmoid(-difference)
    centre = [0.2 * 3, 0.2 * 0.5]
    wanted = [-slope[0] + centre[0], slope[0] + centre[0], -slope[1] + centre[1], slope[1] + centre[1]]
    assert scores.grad.tolist() == pytest.approx([value / 4 for value in wanted])
    further = metrics(torch.tensor([0.0, -7.0]), 1), metrics(torch.tensor([]), 0)
    assert metric_values(out.metrics, *further) == pytest.approx(
        {"accuracy": 2 / 3, "margin": (1 - 2.5 + 7) / 3, "mean_reward": -3.5 / 6, "min_reward": -7, "max_reward": 2}
    )


def test_equal_scores_are_not_right():
    assert metric_values(metrics(torch.tensor([1.0, 1.0]), 1))["accuracy"] == 0


# ---------------------------------------------------------------- rows


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> dict:
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def prepared(row: dict, **fields) -> dict | Drop:
    return ft_prepare(row=row, tokenizer=TOKENIZER, config=RewardConfig(**fields))


def test_a_row_says_what_it_is():
    found = prepared({"prompt": "how many?", "chosen": " 12", "rejected": " 30 apples", "margin": 2})
    assert TOKENIZER.decode(found["prompt_ids"] + found["chosen_ids"]) == "how many? 12<|end|>"
    assert TOKENIZER.decode(found["prompt_ids"] + found["rejected_ids"]) == "how many? 30 apples<|end|>"
    assert found["length"] == sum(len(found[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
    assert (found["margin"], found["truncated"], found["cut"], found["implicit_prompt"]) == (2.0, False, {}, False)
    assert "margin" not in prepared({"prompt": "a", "chosen": " b", "rejected": " c"})
    assert prepared({"chosen": "a b", "rejected": "a c"})["implicit_prompt"] is True


def test_a_row_that_is_too_long_is_cut_and_says_so():
    row = {"prompt": "a", "chosen": " b c d e f", "rejected": " b"}
    whole = prepared(row)
    found = prepared(row, max_length=len(whole["prompt_ids"]) + 4)
    assert found["chosen_ids"] == whole["chosen_ids"][:4] and found["rejected_ids"] == whole["rejected_ids"]
    assert found["truncated"] and found["cut"] == {"chosen": len(whole["chosen_ids"]) - 4}
    row["prompt"] = "a b c d"
    whole = prepared(row)
    found = prepared(row, max_length=len(whole["chosen_ids"]) + 2, truncation_mode="keep_end")
    assert found["chosen_ids"] == whole["chosen_ids"] and found["prompt_ids"] == whole["prompt_ids"][-2:]
    assert found["cut"] == {"prompt": len(whole["prompt_ids"]) - 2}


@pytest.mark.parametrize(
    ("row", "fields", "reason"),
    [
        ({"prompt": "a", "chosen": " b", "rejected": " b"}, {}, "chosen and rejected are the same"),
        ({"prompt": "a", "chosen": " b", "rejected": ""}, {}, "empty completion"),
        ({"chosen_ids": [5, 6], "rejected_ids": [5, 6]}, {}, "chosen and rejected are the same"),
        ({"prompt": "a b c", "chosen": " d", "rejected": " e"}, {"max_length": 2}, "the prompt alone fills max_length"),
        (
            {"prompt": "a", "chosen": " b c d", "rejected": " b c e"},
            {"max_length": 4},
            "chosen and rejected are the same within max_length",
        ),
    ],
)
def test_rows_that_are_dropped_and_counted(row, fields, reason):
    assert prepared(row, **fields) == Drop(reason)


@pytest.mark.parametrize("margin", ["2", True, float("nan"), [1.0]])
def test_a_margin_that_is_no_number(margin):
    with pytest.raises(RowError, match="column margin: found .*, expected a number"):
        prepared({"prompt": "a", "chosen": " b", "rejected": " c", "margin": margin})


def test_tokens_are_those_that_the_reward_model_reads_later():
    """In training and as a reward: texts, and conversations."""
    for prompt, chosen in (
        ("how many?", " 12"),
        ([{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]),
    ):
        rejected = " 30" if isinstance(prompt, str) else [{"role": "assistant", "content": "c"}]
        found = prepared({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        for completion, name in ((chosen, "chosen_ids"), (rejected, "rejected_ids")):
            read = whole_ids({"prompt": prompt, "completion": completion}, TOKENIZER)
            assert read == found["prompt_ids"] + found[name]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([5, 6, 7], [5, 6, 8], 2),
        ([5, 6], [7, 6], 0),
        ([5, 6], [5, 6, 7], 1),  # the whole of one: its last token is left to it
        ([5, 6, 7, 0, 0], [5, 6, 8], 2),
        ([5, 6, 7, 0, 0], [5, 6, 7, 8], 2),  # padding doesn't count as its last
        ([5, 0, 0], [5, 0, 6], 0),
        ([5], [5, 6], 0),
        ([0, 0], [0, 5], 0),  # nothing but padding: read at the first
    ],
)
def test_what_two_texts_share(chosen, rejected, expected):
    assert shared_length(chosen, rejected, 0) == shared_length(rejected, chosen, 0) == expected


def test_where_scores_are_read():
    assert [score_place(ids, 0) for ids in ([5], [5, 6], [5, 0, 6, 0], [0, 0, 0])] == [0, 1, 2, 0]


def test_a_batch_computes_what_is_shared_once():
    rows = [pair([5, 6], [7, 8], [7, 9, 10]), pair([], [11], [12, 13]), pair([14], [15, 0], [15, 16]) | {"margin": 0.5}]
    batch = ft_collate(rows=rows, tokenizer=TOKENIZER, config=RewardConfig())
    assert batch.lengths == [3, 1, 2, 1, 2, 1, 2, 2]
    assert batch.parents == [-1, 0, 0, -1, -1, -1, 5, 5]
    assert batch.num_rows == 6 and batch.counts == {"pairs": 3} and not len(batch.targets)
    assert batch.input_ids[batch.ends].tolist() == [8, 10, 11, 13, 15, 16]
    assert batch.columns["margins"].tolist() == [0.0, 0.0, 0.5]
    assert batch.num_tokens == 4 + 5 + 1 + 2 + 3 + 3
    empty = ft_collate(rows=[], tokenizer=TOKENIZER, config=RewardConfig())
    assert empty.num_rows == 0 and empty.counts == {"pairs": 0} and empty.columns["margins"].shape == (0,)


@pytest.mark.parametrize("kernel", ["sdpa", "none"])
def test_a_shared_beginning_changes_nothing(classifier, rows, monkeypatch, kernel):
    """Against two whole sequences for each pair: loss, and gradient of every weight."""
    config = RewardConfig(model=str(classifier), segment_attention=kernel, center_rewards_coefficient=0.1)
    found = [prepared(row | {"margin": 0.3}) for row in rows[:8]]
    results = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr("ft_reward.method.shared_length", lambda chosen, rejected, pad: 0)
        batch = ft_collate(rows=found, tokenizer=TOKENIZER, config=config)
        assert (len(batch.lengths) > 16) == shared
        policy = load_policy(config, TOKENIZER, CPU, "reward")
        totals = {"pairs": 8}
        loss = ft_loss(model=policy, batch=batch, run=SimpleNamespace(config=config, totals=totals)).divide(totals)
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in policy.parameters()])))
    (loss, gradient), (expected, other) = results
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert other.norm() > 0.1 and (gradient - other).norm() <= 1e-6 * other.norm()


def test_a_rank_without_rows_takes_part(classifier):
    config = RewardConfig(model=str(classifier), center_rewards_coefficient=0.1)
    policy = load_policy(config, TOKENIZER, CPU, "reward")
    batch = ft_collate(rows=[], tokenizer=TOKENIZER, config=config)
    out = ft_loss(model=policy, batch=batch, run=SimpleNamespace(config=config, totals={"pairs": 3}))
    loss = out.divide({"pairs": 3})
    loss.backward()
    assert loss == 0 and all(p.grad is not None for p in policy.parameters())


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eval_reward": ["json:loads"], "eval_dataset": "d"}, "eval_reward: a reward model generates no completions"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped cuts rows anywhere"),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing_strategy: bfd_split cuts rows anywhere"),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef: a reward model is trained without"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        RewardConfig(model="m", dataset="d", **fields).check()
    RewardConfig(model="m", dataset="d", packing=True, router_aux_loss_coef=0.0).check()


# ---------------------------------------------------------------- what a run leaves


def test_from_a_language_model_to_a_classifier(make, llama, rows):
    """Trained until it tells chosen from rejected; transformers then gives the scores that the run evaluated."""
    rows = [{**row, "chosen": " apples" + row["chosen"], "rejected": " dog" + row["rejected"]} for row in rows]
    config = make(rows, model=str(llama), max_steps=12, per_device_train_batch_size=8, eval_on_start=True)
    config = dataclasses.replace(config, eval_dataset=config.dataset, eval_max_rows=6)
    folder = run_in(config, "judge")
    before, after = lines(folder, "eval")
    assert after["eval_accuracy"] == 1.0 and after["eval_loss"] < before["eval_loss"] - 0.3

    model, tokenizer = (
        each.from_pretrained(folder / "model") for each in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    texts = [row["prompt"] + row[name] + "<|end|>" for row in rows[:6] for name in ("chosen", "rejected")]
    with torch.no_grad():
        scores = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.squeeze(1)
    chosen, rejected = scores.view(-1, 2).unbind(1)
    expected = {
        "accuracy": (chosen > rejected).float().mean(),
        "margin": (chosen - rejected).mean(),
        "min_reward": scores.min(),
        "mean_reward": scores.mean(),
        "max_reward": scores.max(),
    }
    for name, value in expected.items():
        assert after[f"eval_{name}"] == pytest.approx(float(value), abs=1e-5), name


def test_the_reward_of_an_sft_run_by_its_path(make, llama, rows):
    """With the scores of a new process on what the samples show."""
    sft_config = pytest.importorskip("ft_sft.config").SFTConfig
    config = make(rows, model=str(llama))
    folder = run_in(config, "judge")
    sft = sft_config(
        model=str(llama),
        dataset=config.dataset,
        eval_dataset=config.dataset,
        eval_max_rows=5,
        eval_reward=[str(folder / "model")],
        dataset_columns={"chosen": "completion"},
        max_completion_length=4,
        max_steps=2,
        use_cpu=True,
        save_steps=0,
        output_dir=config.output_dir,
        per_device_train_batch_size=4,
    )
    policy = run_in(sft, "policy")
    entries = lines(policy, "eval")
    samples = [json.loads(line) for line in (policy / "samples.jsonl").read_text().splitlines()]
    judge = RewardModel(str(folder / "model"), beside(sft, "again"))
    again = judge([sample["prompt"] for sample in samples], [sample["completion"] for sample in samples])
    assert [sample["rewards"]["judge"] for sample in samples] == pytest.approx(again, abs=1e-5)
    for entry, scores in zip(entries, (again[:5], again[5:]), strict=True):
        assert entry["eval_rewards/judge/mean"] == entry["eval_reward"] == pytest.approx(sum(scores) / 5, abs=1e-5)


def test_lora_leaves_an_adapter_and_a_merged_model(make, llama, rows):
    config = make(rows, model=str(llama), use_peft=True, lora_r=4, merge_adapter=True, learning_rate=1e-2)
    folder = run_in(config, "lora")
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    texts = [(row["prompt"], row["chosen"]) for row in rows[:5]]
    found = RewardModel(str(folder / "model"), config)(*map(list, zip(*texts, strict=True)))
    with torch.no_grad():
        ids = [torch.tensor([TOKENIZER(prompt + text + "<|end|>")["input_ids"]]) for prompt, text in texts]
        expected = [merged(each).logits.item() for each in ids]
    assert found == pytest.approx(expected, abs=1e-4)
    assert torch.tensor(expected).std() > 1e-3
