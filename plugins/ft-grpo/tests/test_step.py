"""From completions to rows, and from rows to a loss: what is left out, what is made when, and both ways to a
gradient."""

from __future__ import annotations

import json
import math
from typing import Any

import ft_grpo.method
import pytest
import torch
from ft_grpo.config import LOSS_TYPES, GRPOConfig
from ft_grpo.losses import highest
from ft_grpo.method import controlled, ft_annotate, ft_collate, ft_loss, ft_rollout, ft_step, is_by_token

from ft_host.testing import metric_values, ready_run, small_tiles


def told(rollout: Any) -> dict[str, float]:
    return metric_values(rollout.metrics)


# ---------------------------------------------------------------- rollouts


def test_rows_and_samples(make, prompts, known):
    config = make(prompts, reward_weights=[1.0, 0.1])
    given = known.answers(config)
    given.values[3] = [None, None]
    found = ft_rollout(given.prompts, given)
    assert [row["group"] for row in found.rows] == [0] * 4 + [1] * 4
    assert [row["completion_ids"] for row in found.rows] == [each.token_ids for each in given.completions]
    assert found.samples[5] == {
        "prompt": "p1",
        "completion": given.tokenizer.decode(given.completions[5].token_ids),
        "rewards": dict(zip(("right", "short"), given.values[5], strict=True)),
        "extra": {},
    }
    rewards = torch.tensor([a + 0.1 * b for a, b in (v for v in given.values if v[0] is not None)])
    metrics = told(found)
    assert metrics["reward"] == pytest.approx(float(rewards.mean()))
    assert metrics["reward_std"] == pytest.approx(float(rewards.std()))
    assert metrics["frac_reward_zero_std"] == 0
    assert json.loads(json.dumps(found.rows)) == found.rows, "checkpoints keep them as JSON"


def test_dynamic_sampling_leaves_out_groups_without_a_signal(make, prompts, known):
    """Of five groups: one that differs, one that earns the same, one without rewards, one with a single reward, one
    whose only differing completion counts."""
    config = make(prompts, dynamic_sampling=True, per_device_train_batch_size=20)
    given = known.answers(config, groups=5)
    given.values[4:8] = [[0.1, 0.2]] * 4
    given.values[8:12] = [[None, None]] * 4
    given.values[12:16] = [[None, None]] * 3 + [[1.0, 5.0]]
    given.values[16:20] = [[0.0, 0.0]] * 3 + [[0.0, 0.5]]
    found = ft_rollout(given.prompts, given)
    assert sorted({row["group"] for row in found.rows}) == [0, 4]
    assert len(found.samples) == len(found.rows) == 8
    metrics = told(found)
    assert metrics["frac_reward_zero_std"] == 1 / 5, "of what was sampled; two have nothing to compare"
    assert metrics["completions/max_length"] == max(len(each.token_ids) for each in given.completions)
    everything = make(prompts, per_device_train_batch_size=20)
    given.config = everything
    assert len(ft_rollout(given.prompts, given).rows) == 20


def test_dynamic_sampling_where_each_reward_has_a_say(make, prompts, known):
    """Rewards that cancel in the sum: no signal in it, but one in each of the two."""
    fields = {"dynamic_sampling": True, "per_device_train_batch_size": 4}
    for how, groups in (("sum_then_normalize", 0), ("normalize_then_sum", 1)):
        config = make(prompts, multi_objective_aggregation=how, **fields)
        given = known.answers(config, groups=1)
        given.values = [[1.0, 0.0], [0.0, 1.0]] * 2
        assert len(ft_rollout(given.prompts, given).rows) == 4 * groups


def test_masked_completions(make, prompts, known):
    """No targets, but a reward that the others are measured against."""
    config = make(prompts, mask_truncated_completions=True)
    given = known.answers(config, cut=(1, 4, 5, 6, 7))
    rows = ft_rollout(given.prompts, given).rows
    assert [any(row["sampled"]) for row in rows] == [place not in (1, 4, 5, 6, 7) for place in range(8)]
    plain = known.made(make(prompts), known.answers(config))
    masked = known.made(config, given)
    assert [row["advantage"] for row in masked.rows] == [row["advantage"] for row in plain.rows]
    batch = ft_collate(masked.rows, given.tokenizer, config)
    assert batch.counts["rows"] == 8 and batch.counts["trained"] == 3
    assert batch.counts["tokens"] == sum(len(given.completions[place].token_ids) for place in (0, 2, 3))

    config = make(prompts, mask_truncated_completions=True, dynamic_sampling=True)
    given.config = config
    assert {row["group"] for row in ft_rollout(given.prompts, given).rows} == {0}, "a group of masked ones holds none"


def test_a_prompt_is_computed_once_for_its_group(make, prompts, known):
    config = make(prompts)
    given = known.answers(config)
    batch = ft_collate(ft_rollout(given.prompts, given).rows, given.tokenizer, config)
    completions = sum(len(each.token_ids) for each in given.completions)
    assert len(batch.input_ids) == completions + sum(len(row["prompt_ids"]) for row in given.prompts)
    assert batch.num_tokens == completions + 4 * sum(len(row["prompt_ids"]) for row in given.prompts)


# ---------------------------------------------------------------- once a rollout


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, set()),
        ({"num_iterations": 2}, {"old_logps"}),
        ({"beta": 0.1}, {"ref_logps"}),
        ({"generation_batch_size": 16, "beta": 0.1}, {"old_logps", "ref_logps"}),
    ],
)
def test_log_probs_are_made_where_they_are_needed(make, prompts, known, fields, more):
    config = make(prompts, **fields)
    given = known.answers(config, tools=True)
    rows = ft_rollout(given.prompts, given).rows
    found = ft_annotate(rows, ready_run(config))
    assert set(found[0]) - set(rows[0]) == more | {"advantage"}
    for name in more:
        assert [len(row[name]) for row in found] == [sum(row["sampled"]) for row in found]


@pytest.mark.parametrize(
    "fields", [{}, {"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}]
)
def test_advantages_are_of_all_ranks(make, prompts, known, fields):
    """Two ranks of a group each have the advantages of one that has both."""
    config = make(prompts, **fields)
    given = known.answers(config)
    rows = ft_rollout(given.prompts, given).rows
    run = ready_run(config)
    whole = [row["advantage"] for row in ft_annotate(rows, run)]

    class Rank(type(run)):
        rank = 1

        def gather(self, value: Any) -> list[Any]:
            other = [(row["group"], row["rewards"], row["weights"]) for row in rows[:4]]
            assert value == [(row["group"], row["rewards"], row["weights"]) for row in rows[4:]]
            return [other, value]

    second = Rank(**{name: getattr(run, name) for name in run.__dataclass_fields__})
    second.rollouts = run.rollouts
    assert [row["advantage"] for row in ft_annotate(rows[4:], second)] == whole[4:]


# ---------------------------------------------------------------- the loss


SEQUENCE = {"importance_sampling_level": "sequence"}


def test_when_a_token_needs_no_other():
    """On-policy and off-policy."""
    for fields, expected in (
        ({}, (True, True)),
        ({"beta": 0.1}, (True, True)),
        ({"importance_sampling_correction": "token_truncate"}, (True, True)),
        ({"loss_type": "vespo"}, (True, False)),
        (SEQUENCE, (True, False)),
        (SEQUENCE | {"top_entropy_quantile": 0.3}, (False, False)),
        (SEQUENCE | {"beta": 0.1}, (False, False)),
        (SEQUENCE | {"importance_sampling_correction": "token_truncate"}, (False, False)),
        ({"entropy_coef": 0.1}, (False, False)),
        ({"use_adaptive_entropy": True}, (False, False)),
        ({"backend": "vllm"}, (False, False)),  # which corrects for its sampler by completions
        ({"off_policy_mask_threshold": 0.1}, (False, False)),
    ):
        assert tuple(is_by_token(GRPOConfig(**fields), on_policy) for on_policy in (True, False)) == expected, fields


@pytest.mark.parametrize(
    "fields",
    [
        *({"loss_type": name} for name in LOSS_TYPES),
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.0},
        {"loss_type": "luspo", "mask_truncated_completions": True},
        {"top_entropy_quantile": 0.3},
        {"beta": 0.2},
        {"importance_sampling_correction": "token_truncate"},
        *({"loss_type": name, "num_iterations": 2} for name in LOSS_TYPES if name != "vespo"),
        {"beta": 0.2, "use_bias_correction_kl": True, "num_iterations": 2, "top_entropy_quantile": 0.4},
        {"importance_sampling_correction": "token_mask", "num_iterations": 2, "delta": 1.4},
    ],
    ids=str,
)
def test_both_ways_to_the_gradient(make, prompts, known, monkeypatch, fields):
    """Made in the forward pass, two targets at a time, or by autograd through the log-probs of all."""
    config = make(prompts, **fields)
    assert is_by_token(config, config.num_iterations == 1)
    with small_tiles(2):
        fast = known.made(config, known.answers(config, tools=True))
    monkeypatch.setattr(ft_grpo.method, "is_by_token", lambda config, on_policy: False)
    plain = known.made(config, known.answers(config, tools=True))
    off = config.num_iterations > 1  # then cispo adds up log-probs that cancel
    assert fast.loss == pytest.approx(plain.loss, rel=1e-6, abs=1e-6 if off else 1e-7)
    assert fast.grad.norm() > 1e-3
    assert (fast.grad - plain.grad).norm() <= 1e-5 * plain.grad.norm()
    assert fast.metrics == pytest.approx(plain.metrics, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("names", [("dapo", "bnpo", "cispo", "vespo"), ("grpo", "sapo")])
def test_on_policy_some_losses_have_the_same_gradient(make, prompts, known, names):
    first, *others = [known.made(make(prompts, loss_type=name), known.answers(make(prompts))).grad for name in names]
    for other in others:
        assert (other - first).norm() <= 1e-5 * first.norm()


@pytest.mark.parametrize(
    "fields",
    [
        *({"loss_type": name, "num_iterations": 2} for name in LOSS_TYPES),
        {"loss_type": "grpo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "mask_truncated_completions": True},
        {"beta": 0.2, "entropy_coef": 0.1, "top_entropy_quantile": 0.4, "num_iterations": 2},
        {"importance_sampling_correction": "sequence_mask", "off_policy_mask_threshold": 0.2},
    ],
    ids=str,
)
def test_micro_batches_add_up(make, prompts, known, fields):
    """Loss, gradient and metrics of a step don't depend on how its rows are cut, nor on an empty micro-batch more."""
    config = make(prompts, **fields)
    given = known.answers(config, tools=True)
    run = ready_run(config)
    rows = ft_annotate(ft_rollout(given.prompts, given).rows, run)
    if config.num_iterations > 1:
        known.nudge(run.policy.model)
    rows = ft_step(rows, run) or rows
    whole = ft_collate(rows, run.tokenizer, config)
    found = []
    for cuts in ([rows], [rows[:3], rows[3:4], [], rows[4:]]):
        metrics, total = [], 0.0
        run.policy.zero_grad()
        run.totals = whole.counts
        for cut in cuts:
            output = ft_loss(run.model, ft_collate(cut, run.tokenizer, config), run)
            loss = output.divide(run.totals)
            loss.backward()
            metrics.append(output.metrics)
            total += float(loss.detach())
        found.append((total, known.gradient(run.policy.model).clone(), metric_values(*metrics)))
    (loss, grad, metrics), (split, other, others) = found
    assert split == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert grad.norm() > 1e-3 and (other - grad).norm() <= 1e-5 * grad.norm()
    assert others == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_equal_entropies_are_kept_together_however_a_step_is_cut(make, prompts, known):
    """Completions of a prompt that begin alike have tokens of equal entropy, which round-off may tell apart: wherever
    the quantile falls, tokens of one context are all kept or none, and the same ones in each split."""
    found = []
    for rows_at_once, accumulation in ((8, 1), (4, 2), (2, 4)):
        config = make(
            prompts,
            top_entropy_quantile=0.4,
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=accumulation,
        )
        given = known.answers(config)
        for place, completion in enumerate(given.completions):
            completion.token_ids[:2] = given.completions[place // 4 * 4].token_ids[:2]
        run = ready_run(config)
        found.append(ft_step(ft_annotate(ft_rollout(given.prompts, given).rows, run), run))
    assert [row["kept"] for row in found[0]] == [row["kept"] for row in found[1]] == [row["kept"] for row in found[2]]
    noise = torch.Generator().manual_seed(3)
    splits = []
    for rows in found:  # whether the last bit differs is the machine's business; here it always does
        exact = torch.tensor([value for row in rows for value in row["entropies"]])
        splits.append((exact + torch.randn(len(exact), generator=noise) * torch.finfo(exact.dtype).eps * 2).double())
    places = iter(range(len(splits[0])))
    contexts = [[next(places) for _ in row["entropies"]][:2] for row in found[0]]
    for number in range(len(splits[0])):
        kept = [highest(split, number / (len(split) - 1)) for split in splits]
        assert kept[0].equal(kept[1]) and kept[0].equal(kept[2]), number
        for group in (contexts[:4], contexts[4:]):
            for same in zip(*group, strict=True):
                assert len({bool(kept[0][place]) for place in same}) == 1, number


def test_a_step_in_which_all_is_masked(make, prompts, known):
    """Nothing to learn: a loss and a gradient of 0, and the loss hangs on the model, as collectives need."""
    config = make(prompts, mask_truncated_completions=True)
    found = known.made(config, known.answers(config, cut=tuple(range(8))))
    assert found.loss == 0 and not found.grad.any()


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate"])
def test_the_effective_sample_size(make, prompts, known, mode):
    """(sum w)^2 / (n sum w^2), with the weights that the config asks for, from the log-probs of the rows."""
    config = make(prompts, importance_sampling_correction=mode, num_iterations=2)
    found = known.made(config, known.answers(config))
    gaps = [[a - b for a, b in zip(row["old_logps"], row["sampling_logps"], strict=True)] for row in found.rows]
    if mode == "token_truncate":
        weights = [min(math.exp(gap), 3.0) for row in gaps for gap in row]
    else:
        weights = [min(math.exp(sum(row)), 3.0) for row in gaps]
    expected = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
    assert found.metrics["sampling/effective_sample_size"] == pytest.approx(expected, rel=1e-5)
    assert 0.1 < expected < 0.95


# ---------------------------------------------------------------- adaptive entropy


def test_the_coefficient_follows_entropy():
    config = GRPOConfig(
        use_adaptive_entropy=True, entropy_coef=0.1, entropy_coef_delta=0.06, entropy_coef_max=0.2, entropy_target=1.0
    )
    state, seen = None, []
    for step, entropy in enumerate([0.9, 1.0, 1.5, 1.6, 0.5, 0.5]):
        state = controlled(state, step, entropy, config)
        seen.append((state["applied"], state["next"]))
    expected = [(0.0, 0.16), (0.16, 0.2), (0.2, 0.14), (0.0, 0.08), (0.0, 0.14), (0.14, 0.2)]
    assert seen == [pytest.approx(pair) for pair in expected]


def test_a_step_that_is_made_again_changes_nothing():
    """A run that is stopped between this and the update keeps the state, and comes by again."""
    config = GRPOConfig(use_adaptive_entropy=True, entropy_coef=0.1, entropy_target=1.0)
    first = controlled(controlled(None, 0, 0.5, config), 1, 0.5, config)
    assert controlled(json.loads(json.dumps(first)), 1, 0.5, config) == first
