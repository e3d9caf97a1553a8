"""The formulas of ORPO beside numbers that were computed by hand, and what a batch counts."""

from __future__ import annotations

import math

import pytest
import torch
from ft_orpo.config import ORPOConfig
from ft_orpo.method import NEAREST, ft_collate, ft_loss, ft_prepare, log1mexp, log_odds

from ft_host.testing import metric_values, ready_run, tiny_run, tiny_tokenizer

PAIRS = [
    {"prompt_ids": [5, 6], "chosen_ids": [7, 8, 9], "rejected_ids": [10]},
    {"prompt_ids": [], "chosen_ids": [7, 8], "rejected_ids": [10, 11, 12]},
]


def test_odds_by_hand():
    """p = 1/2 has the odds 1, p = 1/5 has 1/4, p = 9/10 has 9."""
    half, fifth, most = (torch.tensor([math.log(p)]) for p in (0.5, 0.2, 0.9))
    assert float(log_odds(half, fifth)) == pytest.approx(math.log(4), rel=1e-6)
    assert float(log_odds(most, half)) == pytest.approx(math.log(9), rel=1e-6)
    assert float(log_odds(fifth, fifth)) == 0


@pytest.mark.parametrize("x", [-1e-5, -0.01, -0.69, -0.70, -5.0, -40.0])
def test_log1mexp_keeps_its_digits_on_both_sides(x):
    """Against float64: 1 - e^x alone loses all digits near 0."""
    exact = math.log1p(-math.exp(x)) if x < -0.5 else math.log(-math.expm1(x))
    assert float(log1mexp(torch.tensor(x))) == pytest.approx(exact, rel=3e-6, abs=1e-12)


def test_a_certain_completion_is_finite_and_has_no_gradient():
    certain = torch.zeros(1, requires_grad=True)
    other = torch.tensor([-1.0], requires_grad=True)
    found = log_odds(certain, other)
    found.sum().backward()
    expected = (NEAREST + 1) - (math.log(1e-6) - math.log(1 - math.exp(-1)))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-3)
    assert float(certain.grad) == 0 and math.isfinite(float(other.grad)) and float(other.grad) != 0


@pytest.mark.parametrize(("on_prompt", "tokens"), [(True, 5), (False, 4)])
def test_what_a_batch_counts(on_prompt, tokens):
    """Of the first pair: 1 token of the prompt that something predicts and 3 chosen ones; of the second, 1 chosen."""
    batch = ft_collate([row | {"length": 6} for row in PAIRS], None, ORPOConfig(nll_on_prompt=on_prompt))
    assert batch.counts["pairs"] == 2 and batch.counts["nll_tokens"] == tokens
    assert float(batch.columns["is_chosen"].sum()) == tokens


def test_an_empty_micro_batch_has_the_same_columns_and_counts_of_0():
    empty = ft_collate([], None, ORPOConfig())
    some = ft_collate([row | {"length": 6} for row in PAIRS], None, ORPOConfig())
    assert empty.counts.keys() == some.counts.keys() and not any(empty.counts.values())
    assert empty.columns.keys() == some.columns.keys()


@pytest.mark.parametrize("on_prompt", [True, False])
def test_the_loss_by_hand(llama, tmp_path, on_prompt):
    """From the model's own logits, a completion at a time."""
    rows = [
        {"prompt": "apples?", "chosen": " three", "rejected": " a lazy dog"},
        {"prompt": "a small model", "chosen": " learns step by step", "rejected": " jumps"},
    ]
    config = tiny_run(ORPOConfig, llama, tmp_path, rows, beta=0.3, nll_on_prompt=on_prompt)
    run = ready_run(config)
    made = [ft_prepare(row, tiny_tokenizer(), config) for row in rows]
    batch = ft_collate(made, run.tokenizer, config)
    found = ft_loss(run.model, batch, run)

    nll = tokens = odds = 0.0
    for row in made:
        means = []
        for name in ("chosen", "rejected"):
            ids, start = row["prompt_ids"] + row[f"{name}_ids"], len(row["prompt_ids"])
            with torch.no_grad():
                logs = run.policy.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            of_tokens = [float(logs[at - 1, ids[at]]) for at in range(1, len(ids))]
            means.append(sum(of_tokens[start - 1 :]) / len(of_tokens[start - 1 :]))
            if name == "chosen":
                kept = of_tokens if on_prompt else of_tokens[start - 1 :]
                nll, tokens = nll - sum(kept), tokens + len(kept)
        ratio = [math.exp(each) / (1 - math.exp(each)) for each in means]
        odds += math.log1p(ratio[1] / ratio[0])  # - log sigmoid(log of the ratio of odds)
    assert float(found.divide(batch.counts)) == pytest.approx(nll / tokens + 0.3 * odds / 2, rel=1e-5)
    metrics = metric_values(found.metrics)
    assert metrics["nll_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert metrics["log_odds_ratio"] == pytest.approx(-odds / 2, rel=1e-4)
