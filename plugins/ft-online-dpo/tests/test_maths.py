"""Which completions are a pair, by hand, and what the loss makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from ft_online_dpo.config import LOSS_TYPES, OnlineDPOConfig
from ft_online_dpo.method import LOSSES, best_and_worst, ft_annotate, ft_collate, ft_loss, ft_rollout

from ft_host.testing import metric_values, ready_run


def rolled(answers, earned: list[float | None], **fields):
    given = answers(OnlineDPOConfig(**({"num_generations": 4} | fields)), earned)
    found = ft_rollout(given.prompts, given)
    pairs = [
        (row["chosen"]["completion_ids"][0] - 20, row["rejected"]["completion_ids"][0] - 20)
        for row in found.rows
        if row["kept"]
    ]
    return found, pairs, metric_values(found.metrics)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([1.0, 3.0, 2.0], (1, 0, 2.0)),
        ([2.0, 2.0, 1.0, 1.0], (0, 2, 1.0)),  # the first of equals
        ([None, -3.0, None, -2.0], (3, 1, 1.0)),
        ([1.0, 1.0 + 1e-12], (0, 1, 0.0)),  # round-off
        ([None, 4.0], (0, 1, 0.0)),  # one reward has nothing to be compared with
        ([None, None], (0, 1, 0.0)),
    ],
)
def test_the_best_and_the_worst(rewards, expected):
    assert best_and_worst(rewards) == expected


def test_losses_by_hand():
    margins = torch.tensor([0.0, 2.0])
    assert tuple(LOSSES) == LOSS_TYPES
    assert LOSSES["sigmoid"](margins, 0.5).tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))])
    assert LOSSES["ipo"](margins, 0.5).tolist() == pytest.approx([1.0, 1.0])


def test_a_pair_of_each_prompt(answers):
    found, pairs, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0, -4.0, -1.0, -3.0, -2.0])
    assert pairs == [(1, 0), (5, 4)] and [row["group"] for row in found.rows] == [0, 1]
    assert metrics["pairs/reward_margin"] == 3 and metrics["pairs/kept_share"] == 1
    assert metrics["reward"] == pytest.approx((6 - 10) / 8)
    [first, _] = found.samples
    assert first["completion"] == "text 21" and first["extra"]["rejected"] == "text 20"
    # prompt 2, chosen 3, rejected 2 tokens
    assert found.rows[0]["length"] == 2 + 3 + 2 and found.rows[0]["completion_ids"] == [21, 40, 39]


def test_nothing_is_learnt_from_equal_rewards_or_equal_completions(answers):
    _, pairs, metrics = rolled(answers, [1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 1.0, 2.0])
    assert pairs == [(5, 4)] and metrics["frac_reward_zero_std"] == 0.5 and metrics["pairs/kept_share"] == 0.5

    class Alike(answers):
        def generate(self, rows, generations):
            return [super().generate(rows, generations)[0]] * (len(rows) * generations)

    given = Alike(OnlineDPOConfig(num_generations=4), [0.0, 3.0, 1.0, 2.0])
    assert not ft_rollout(given.prompts, given).rows[0]["kept"]


def test_a_completion_that_was_cut_pays_for_it(answers):
    """The odd ones are cut: 3 and 2 become -2 and -3, so that the best is the third and the worst the fourth."""
    _, pairs, metrics = rolled(answers, [0.0, 3.0, 1.0, 2.0], missing_eos_penalty=5.0)
    assert pairs == [(2, 3)] and metrics["pairs/reward_margin"] == 4 and metrics["reward"] == 1.5


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_the_loss_by_hand(make, answers, tmp_path, name):
    """From the logits of policy and reference at the run's temperature; a prompt without a pair is in no count."""
    from transformers import AutoModelForCausalLM

    from ft_host.testing import save_tiny, tiny_llama

    other = save_tiny(tmp_path / "other", tiny_llama(seed=3))
    config = make(OnlineDPOConfig, loss_type=name, beta=0.3, temperature=0.8, ref_model=str(other))
    run = ready_run(config)
    given = answers(config, [0.0, 3.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    rows = ft_annotate(ft_rollout(given.prompts, given).rows, run)
    batch = ft_collate(rows, run.tokenizer, config)
    run.totals = batch.counts
    found = ft_loss(run.model, batch, run)
    ratios, tokens = [], 0
    for side in ("chosen", "rejected"):
        row = rows[0][side]
        ids, start = row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])
        sums = []
        for model in (run.policy.model, AutoModelForCausalLM.from_pretrained(other)):
            with torch.no_grad():
                logs = (model(torch.tensor([ids])).logits[0].double() / 0.8).log_softmax(-1)
            sums.append(sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids))))
        ratios.append(sums[0] - sums[1])
        tokens += len(ids) - start
    margin = ratios[0] - ratios[1]
    expected = math.log(1 + math.exp(-0.3 * margin)) if name == "sigmoid" else (margin - 1 / 0.6) ** 2
    assert batch.counts["pairs"] == 1 and batch.counts["tokens"] == tokens
    assert float(found.divide(batch.counts).detach()) == pytest.approx(expected, rel=1e-5)
    metrics = metric_values(found.metrics)
    assert metrics["rewards/margins"] == pytest.approx(0.3 * margin, rel=1e-4)
    assert metrics["kl"] == pytest.approx(sum(ratios) / tokens, rel=1e-3)


def test_a_step_without_a_pair_has_a_loss_of_0_and_a_gradient(make, answers):
    config = make(OnlineDPOConfig)
    run = ready_run(config)
    given = answers(config, [1.0] * 8)
    rows = ft_annotate(ft_rollout(given.prompts, given).rows, run)
    batch = ft_collate(rows, run.tokenizer, config)
    run.totals = batch.counts
    loss = ft_loss(run.model, batch, run).divide(batch.counts)
    loss.backward()
    assert float(loss.detach()) == 0 and batch.counts["pairs"] == 0
    assert all(math.isfinite(float(p.grad.norm())) for p in run.policy.parameters() if p.grad is not None)


def test_a_rollout_is_prompts_and_its_rows_are_pairs():
    plan = OnlineDPOConfig(num_generations=4, per_device_train_batch_size=8).rollout_plan(1)
    assert (plan.prompts, plan.completions, plan.rows) == (8, 32, 8)
