"""From prompts to rows, and what is said of them once a rollout."""

from __future__ import annotations

import pytest
import torch
from ft_rloo.method import ft_annotate, ft_collate, ft_loss, ft_rollout

from ft_host.testing import metric_values, ready_run

GIVEN = [[3.0, 1.0], [None, None], [1.0, None], [2.0, -2.0]]  # of the completions of two prompts, two each


def prompt_rows(texts: list[str]) -> list[dict]:
    return [
        {"prompt": text, "prompt_ids": [40, 41 + index], "columns": {}, "group": index}
        for index, text in enumerate(texts)
    ]


def scores(values: list) -> object:
    left = iter(values)
    return lambda ids: next(left)


def test_rewards_are_weighed_and_clipped(make, prompts, answers, fixed):
    config = make(prompts, reward_weights=[1.0, 0.5], reward_clip_range=[0.5, 2.0])
    found = ft_rollout(prompt_rows(["a", "b"]), answers(config, rewards=scores(GIVEN)))
    assert [row["reward"] for row in found.rows] == [2.0, None, 1.0, 1.0]
    assert [row["group"] for row in found.rows] == [0, 0, 1, 1]
    assert [row["completion_ids"] for row in found.rows] == fixed("a", 2) + fixed("b", 2)
    assert found.samples[0]["rewards"] == {"first": 3.0, "second": 1.0}
    assert [sample["prompt"] for sample in found.samples] == ["a", "a", "b", "b"]
    assert found.samples[3]["extra"] == {"size": len(fixed("b", 2)[1])}
    said = metric_values(found.metrics)
    assert said["reward"] == pytest.approx((3.5 + 1.0 + 1.0) / 3)  # as they were before clipping
    assert said["reward_std"] == pytest.approx(2.5 / 3**0.5)
    assert said["frac_reward_zero_std"] == 0.5  # of the first prompt there is nothing to compare


def test_masked_completions(make, prompts, answers):
    """The third of each prompt is cut short: it has no targets, and its reward still counts for the others."""
    config = make(prompts, mask_truncated_completions=True, num_generations=3, per_device_train_batch_size=6)
    found = ft_rollout(prompt_rows(["a", "b"]), answers(config, rewards=scores([[1.0], [2.0], [6.0]] * 2)))
    assert [any(row["sampled"]) for row in found.rows] == [True, True, False] * 2
    assert [row["reward"] for row in found.rows] == [1.0, 2.0, 6.0] * 2


def rollout_rows(make, prompts, answers, values, **fields):
    config = make(prompts, per_device_train_batch_size=len(values), **fields)
    run = ready_run(config)
    texts = [f"{index}" for index in range(len(values) // config.num_generations)]
    return ft_annotate(ft_rollout(prompt_rows(texts), answers(config, rewards=scores(values))).rows, run), run


def test_advantages(make, prompts, answers):
    rows, run = rollout_rows(make, prompts, answers, GIVEN, beta=0.0)
    assert [row["advantage"] for row in rows] == [0.0, 0.0, 1.0, -1.0]
    assert not {"old_logps", "kl"} & rows[0].keys(), "log-probs were made that nobody needs"


def test_normalized_advantages(make, prompts, answers):
    """Those of four completions are -1, 1, 1 and -1; the two without one are neither in the mean nor in the
    deviation."""
    values = [[0.0], [1.0], [2.0], [1.0], [5.0], [None]]
    rows, _ = rollout_rows(make, prompts, answers, values, beta=0.0, normalize_advantages=True)
    scale = (4 / 3) ** 0.5 + 1e-4
    assert [row["advantage"] for row in rows] == pytest.approx([-1 / scale, 1 / scale, 1 / scale, -1 / scale, 0, 0])


def test_kl_is_taken_off_the_reward(make, prompts, answers, reference):
    rows, run = rollout_rows(make, prompts, answers, GIVEN, beta=0.3, ref_model=str(reference))
    kl = [row["kl"] for row in rows]
    assert all(abs(each) > 1e-2 for each in kl)
    assert [row["advantage"] for row in rows] == pytest.approx(
        [0.0, 0.0, (1.0 - 0.0) - 0.3 * (kl[2] - kl[3]), (0.0 - 1.0) - 0.3 * (kl[3] - kl[2])]
    )
    assert [row["old_logps"] - row["ref_logps"] for row in rows] == pytest.approx(kl)


def test_groups_that_lie_on_two_ranks(make, prompts, answers):
    """A group is compared wherever its completions are, and each rank gets its own back."""
    rows, run = rollout_rows(make, prompts, answers, [[3.0], [1.0], [5.0], [4.0]], beta=0.0, num_generations=4)
    others = [("a group of another rank", 2.0), (0, 7.0)]
    run.gather = lambda mine: [others, mine]
    run.accelerator.state.process_index = 1
    try:
        again = ft_annotate(rows, run)
    finally:
        run.accelerator.state.process_index = 0
    assert [row["advantage"] for row in again] == [3 - 17 / 4, 1 - 19 / 4, 5 - 15 / 4, 4 - 16 / 4]


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"num_iterations": 2}])
def test_a_rank_without_rows(make, prompts, answers, fields):
    """The loss is 0 and connected to the model, as the others' gradients are waited for."""
    _, run = rollout_rows(make, prompts, answers, GIVEN, **fields)
    assert ft_annotate([], run) == []
    batch = ft_collate([], run.tokenizer, run.config)
    assert batch.counts == {"rows": 0, "trained": 0, "tokens": 0}
    run.totals = {"trained": 4}
    found = ft_loss(run.policy, batch, run)
    loss = found.divide(run.totals)
    loss.backward()
    assert float(loss.detach()) == 0 and metric_values(found.metrics) == {}
    assert all(parameter.grad is not None for parameter in run.policy.causal_lm.lm_head.parameters())


def test_the_sampler_is_compared_with_the_policy(make, prompts, answers):
    """`answers` says -1 of each token; what the policy says is had without a second forward pass where it is the
    same."""
    for fields in ({"beta": 0.0}, {"beta": 0.0, "num_iterations": 2}):
        rows, run = rollout_rows(make, prompts, answers, GIVEN, **fields)
        batch = ft_collate(rows, run.tokenizer, run.config)
        run.totals = batch.counts
        said = metric_values(ft_loss(run.policy, batch, run).metrics)
        with torch.no_grad():
            apart = (run.policy(batch, want=("logp",))["logp"] + 1).abs()
        assert said["sampling/sampling_logp_difference/mean"] == pytest.approx(float(apart.mean()), rel=1e-5)
        assert said["sampling/sampling_logp_difference/max"] == pytest.approx(float(apart.max()), rel=1e-5)
