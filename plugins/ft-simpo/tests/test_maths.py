"""The formulas of SimPO and CPO beside numbers that were computed by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from ft_simpo.config import LOSS_TYPES, SimPOConfig
from ft_simpo.method import LOSSES, ft_collate, ft_loss, ft_prepare, shaped

from ft_host.api import ConfigError
from ft_host.testing import metric_values, ready_run, tiny_run, tiny_tokenizer

MARGINS = torch.tensor([0.0, 0.5, -1.0])


def losses(name: str, **fields) -> list[float]:
    return LOSSES[name](MARGINS, SimPOConfig(loss_type=name, **fields)).tolist()


def test_every_loss_is_in_the_table():
    assert tuple(LOSSES) == LOSS_TYPES


def test_simpo_by_hand():
    """- log sigma(2 m - 0.5): log(1 + e^0.5), log(1 + e^-0.5), log(1 + e^2.5)."""
    expected = [math.log(1 + math.exp(-(2 * m - 0.5))) for m in MARGINS.tolist()]
    assert losses("simpo") == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx([0.974077, 0.474077, 2.578890], abs=1e-6)


def test_the_target_margin_is_where_the_loss_is_ln_2():
    config = SimPOConfig(beta=4.0, simpo_gamma=1.0)
    assert float(LOSSES["simpo"](torch.tensor(0.25), config)) == pytest.approx(math.log(2), rel=1e-6)


def test_the_others_by_hand():
    assert losses("sigmoid", beta=1.0) == pytest.approx([0.6931472, 0.4740770, 1.3132617], abs=1e-6)
    assert losses("hinge", beta=1.0) == pytest.approx([1.0, 0.5, 2.0])
    assert losses("ipo", beta=0.5) == pytest.approx([1.0, 0.25, 4.0])


def test_smoothed_labels():
    """A tenth of the pairs swapped: 0.9 of one loss and 0.1 of the other."""
    right, wrong = losses("sigmoid", beta=1.0), losses("sigmoid", beta=-1.0)
    expected = [0.9 * a + 0.1 * b for a, b in zip(right, wrong, strict=True)]
    assert losses("sigmoid", beta=1.0, label_smoothing=0.1) == pytest.approx(expected, rel=1e-6)


def test_alphapo_by_hand():
    """(1 - p^-alpha) / alpha with p = 1/4: alpha 0.5 gives (1 - 2) / 0.5, alpha -0.5 gives (1 - 0.5) / -0.5."""
    quarter = torch.tensor([math.log(0.25)])
    assert shaped(quarter, 0.5).tolist() == pytest.approx([-2.0])
    assert shaped(quarter, -0.5).tolist() == pytest.approx([-1.0])
    assert shaped(quarter, 0.0).tolist() == quarter.tolist()
    assert shaped(quarter, 1e-4).tolist() == pytest.approx(quarter.tolist(), rel=1e-3)


def test_a_power_of_a_completion_that_is_next_to_impossible_stays_finite():
    logps = torch.tensor([-2000.0, -1.0], requires_grad=True)
    shaped(logps, 0.5).sum().backward()
    assert torch.isfinite(logps.grad).all() and float(logps.grad[0]) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss_type": "sigmoid", "simpo_gamma": 1.0}, "simpo_gamma: .*only on simpo"),
        ({"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing: .*only on simpo and sigmoid"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy: wrapped cuts rows anywhere"),
    ],
)
def test_what_has_no_effect_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SimPOConfig(model="m", dataset="d", **fields).check()


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_the_loss_by_hand(llama, tmp_path, name):
    """From the model's own logits, a completion at a time: means for simpo and ipo, sums for the others."""
    rows = [
        {"prompt": "apples?", "chosen": " three", "rejected": " a lazy dog"},
        {"prompt": "a small model", "chosen": " learns step by step", "rejected": " jumps"},
    ]
    config = tiny_run(SimPOConfig, llama, tmp_path, rows, loss_type=name, beta=0.3, cpo_alpha=0.7)
    run = ready_run(config)
    made = [ft_prepare(row, tiny_tokenizer(), config) for row in rows]
    batch = ft_collate(made, run.tokenizer, config)
    found = ft_loss(run.model, batch, run)

    margins, nll, tokens = [], 0.0, 0
    for row in made:
        logps = []
        for side in ("chosen", "rejected"):
            ids, start = row["prompt_ids"] + row[f"{side}_ids"], len(row["prompt_ids"])
            with torch.no_grad():
                logs = run.policy.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            of_tokens = [float(logs[at - 1, ids[at]]) for at in range(start, len(ids))]
            logps.append(sum(of_tokens) / (len(of_tokens) if name in ("simpo", "ipo") else 1))
            if side == "chosen":
                nll, tokens = nll - sum(of_tokens), tokens + len(of_tokens)
        margins.append(logps[0] - logps[1])
    of_pairs = LOSSES[name](torch.tensor(margins, dtype=torch.float64), dataclasses.replace(config))
    assert float(found.divide(batch.counts)) == pytest.approx(float(of_pairs.mean()) + 0.7 * nll / tokens, rel=1e-5)
    assert metric_values(found.metrics)["rewards/margins"] == pytest.approx(0.3 * sum(margins) / 2, rel=1e-4)


def test_an_empty_micro_batch_has_the_same_counts_of_0():
    empty = ft_collate([], None, SimPOConfig())
    assert empty.counts.keys() == {"pairs", "tokens", "chosen_tokens", "rejected_tokens"}
    assert not any(empty.counts.values())
