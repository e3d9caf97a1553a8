"""Which completions are kept, by hand, and what is learnt from them."""

from __future__ import annotations

import math

import pytest
import torch
from ft_bon.config import BestOfNConfig
from ft_bon.method import best, ft_collate, ft_loss, ft_rollout

from ft_host.api import ConfigError
from ft_host.testing import metric_values, ready_run


def rolled(answers, earned: list[float | None], **fields):
    given = answers(BestOfNConfig(**({"num_generations": 4} | fields)), earned)
    found = ft_rollout(given.prompts, given)
    kept = [row["completion_ids"][0] - 20 for row in found.rows if any(row["sampled"])]
    return found, kept, metric_values(found.metrics)


def test_the_best_come_first_and_the_first_of_equals():
    assert best([0.0, 2.0, None, 2.0, -1.0], 3) == [1, 3, 0]
    assert best([None, None, -5.0], 2) == [2, 0]
    assert best([0.0, None], 2) == [0, 1], "no reward is no reward of 0"


def test_the_best_of_each_prompt_is_kept(answers):
    """Prompts earn 0, 3, 1, 2 and -4, -1, -3, -2: their best exceed their means by 1.5 each."""
    found, kept, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0, -4.0, -1.0, -3.0, -2.0])
    assert kept == [1, 5] and [row["group"] for row in found.rows] == [0, 1]
    assert metrics["best/reward"] == pytest.approx((3 - 1) / 2) and metrics["best/gain"] == pytest.approx(1.5)
    assert metrics["best/kept_share"] == 1 and metrics["frac_reward_zero_std"] == 0
    assert [sample["completion"] for sample in found.samples] == ["text 21", "text 25"]


def test_several_of_a_prompt(answers):
    _, kept, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0], num_kept=2)
    assert kept == [1, 3] and metrics["best/reward"] == pytest.approx(2.5)


def test_what_is_below_min_reward_is_rejected(answers):
    found, kept, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0, -4.0, -1.0, -3.0, -2.0], min_reward=0.5)
    assert kept == [1] and len(found.rows) == 2 and metrics["best/kept_share"] == 0.5
    assert metrics["best/reward"] == 3 and metrics["best/gain"] == pytest.approx(1.5)


@pytest.mark.parametrize(("keep_equal", "places"), [(False, [1]), (True, [1, 4])])
def test_a_prompt_whose_completions_are_equal_has_no_best(answers, keep_equal, places):
    _, kept, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0], keep_equal=keep_equal)
    assert kept == places and metrics["frac_reward_zero_std"] == 0.5


def test_a_completion_without_a_reward_is_never_the_best(answers):
    _, kept, _ = rolled(answers, [None, -3.0, None, -2.0, None, None, None, None], keep_equal=True)
    assert kept == [3]


def test_the_loss_is_the_likelihood_of_the_kept_tokens(make, answers):
    """By hand, from the model's logits at the run's temperature; a prompt that is left out is in no count."""
    config = make(BestOfNConfig, temperature=0.8)
    run = ready_run(config)
    given = answers(config, [0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    rows = ft_rollout(given.prompts, given).rows
    batch = ft_collate(rows, run.tokenizer, config)
    run.totals = batch.counts
    found = ft_loss(run.model, batch, run)
    ids, start = rows[0]["prompt_ids"] + rows[0]["completion_ids"], len(rows[0]["prompt_ids"])
    with torch.no_grad():
        logs = (run.policy.model(torch.tensor([ids])).logits[0].double() / 0.8).log_softmax(-1)
    of_tokens = [float(logs[at - 1, ids[at]]) for at in range(start, len(ids))]
    assert batch.counts["tokens"] == len(of_tokens) and batch.counts["trained"] == 1
    assert float(found.divide(batch.counts).detach()) == pytest.approx(-sum(of_tokens) / len(of_tokens), rel=1e-5)
    apart = metric_values(found.metrics)["sampling/sampling_logp_difference/mean"]
    assert apart == pytest.approx(sum(abs(-1.0 - each) for each in of_tokens) / len(of_tokens), rel=1e-4)


def test_a_step_in_which_nothing_is_kept_has_a_loss_of_0_and_a_gradient(make, answers):
    config = make(BestOfNConfig)
    run = ready_run(config)
    given = answers(config, [1.0] * 8)
    batch = ft_collate(ft_rollout(given.prompts, given).rows, run.tokenizer, config)
    run.totals = batch.counts
    loss = ft_loss(run.model, batch, run).divide(batch.counts)
    loss.backward()
    assert float(loss.detach()) == 0 and batch.counts["tokens"] == 0
    assert all(math.isfinite(float(p.grad.norm())) for p in run.policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("kept", [1, 2])
def test_a_rollout_is_prompts_and_its_rows_are_what_is_kept(kept):
    config = BestOfNConfig(num_generations=8, num_kept=kept, per_device_train_batch_size=4)
    plan = config.rollout_plan(1)
    assert (plan.prompts, plan.completions, plan.rows) == (4 // kept, 32 // kept, 4)


def test_keeping_all_is_refused():
    with pytest.raises(ConfigError, match="num_kept: 4 of 4 completions .* rejects none; expected at most 3"):
        BestOfNConfig(model="m", dataset="d", reward=["r"], num_generations=4, num_kept=4).check()
