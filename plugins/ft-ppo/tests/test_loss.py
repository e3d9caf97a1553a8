"""Values of a rollout, loss and gradient against a second formula: full logits of plain transformers models, one
sequence after the other, and plain loops."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import pytest
import torch
from ft_ppo.method import ft_annotate, ft_collate, ft_loss

from ft_host.testing import metric_values, ready_run

VALUES = {"head": {"value_head": True}, "model": {}, "reward model": {"value_model": "scorer"}}


@pytest.fixture(params=VALUES)
def config(request, make, prompts, reference, scorer):
    fields = {"value_model": str(scorer)} if request.param == "reward model" else VALUES[request.param]
    return make(prompts, ref_model=str(reference), gamma=0.95, lam=0.9, kl_coef=0.3, vf_coef=0.7, **fields)


def plain(run: Any, row: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one row at the run's weights: log-probs and values of its targets, and entropy before each."""
    policy, ids = run.policy, torch.tensor([row["prompt_ids"] + row["completion_ids"]])
    first, size = len(row["prompt_ids"]), len(row["completion_ids"])
    kept = torch.tensor(row["sampled"])
    out = policy.causal_lm(ids, output_hidden_states=True)
    logs = (out.logits[0, first - 1 : -1] / run.config.temperature).log_softmax(-1)
    value = policy.companions["value"]
    if run.config.value_head:
        values = value.value(out.hidden_states[-1][0]).squeeze(1)
    else:
        states = value.causal_lm.model(ids).last_hidden_state[0]
        values = value.causal_lm.score(states).squeeze(1)
    logps = logs[range(size), row["completion_ids"]]
    return logps[kept], values[first - 1 : -1][kept], -(logs.exp() * logs).sum(-1)[kept]


def by_hand(run: Any, rows: list[dict]) -> list[dict]:
    """What ft_annotate should say of the rows, by loops over tokens."""
    from transformers import AutoModelForCausalLM

    config = run.config
    frozen = AutoModelForCausalLM.from_pretrained(config.ref_model)
    found = []
    for row in rows:
        with torch.no_grad():
            logps, values, _ = (each.double().tolist() for each in plain(run, row))
            ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
            logits = frozen(ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
        logs = (logits / config.temperature).log_softmax(-1)[range(len(row["completion_ids"])), row["completion_ids"]]
        apart = [a - b for a, b in zip(logps, logs[torch.tensor(row["sampled"])].tolist(), strict=True)]
        kl = apart if config.kl_estimator == "k1" else [math.exp(-a) - 1 + a for a in apart]
        rewards = [-config.kl_coef * each for each in kl]
        if rewards:
            rewards[-1] += row["score"]
        found.append({"old_logps": logps, "values": values, "rewards": rewards, "kl": sum(kl)})
    if config.whiten_rewards:
        every = numpy.concatenate([each["rewards"] for each in found])
        scale = math.sqrt(every.var(ddof=1) + 1e-8)
        for each in found:
            each["rewards"] = [(value - every.mean()) / scale + every.mean() for value in each["rewards"]]
    for each in found:
        size, v = len(each["values"]), [*each["values"], 0.0]
        d = [each["rewards"][t] + config.gamma * v[t + 1] - v[t] for t in range(size)]
        decay = config.gamma * config.lam
        each["raw"] = [sum(decay ** (s - t) * d[s] for s in range(t, size)) for t in range(size)]
        each["returns"] = [a + b for a, b in zip(each["raw"], each["values"], strict=True)]
    every = numpy.concatenate([each["raw"] for each in found])
    for each in found:
        scale = math.sqrt(every.var(ddof=1) + 1e-8)
        each["advantages"] = [(value - every.mean()) / scale for value in each["raw"]]
    return found


@pytest.mark.parametrize("fields", [{}, {"kl_estimator": "k3", "whiten_rewards": True}], ids=["k1", "k3 whitened"])
def test_what_a_rollout_is_told(config, completions, fields):
    for name, value in fields.items():
        setattr(config, name, value)
    run = ready_run(config)
    found = ft_annotate(completions, run)
    for row, one, other in zip(completions, found, by_hand(run, completions), strict=True):
        assert row.items() <= one.items() and "ref_logps" not in one
        for name in ("old_logps", "values", "returns", "advantages"):
            assert len(one[name]) == sum(row["sampled"])
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
        assert one["kl"] == pytest.approx(other["kl"], rel=1e-5, abs=1e-5)
    every = numpy.concatenate([row["advantages"] for row in found])
    assert every.mean() == pytest.approx(0, abs=1e-12) and every.std(ddof=1) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("how", ["auto", "token_truncate", "sequence_mask"])
def test_loss_gradient_and_metrics(config, completions, how):
    """At weights that have moved on since the rollout, so that ratios and values leave their ranges; sampled by the
    policy itself, and by another one."""
    run = ready_run(config)
    noise = random.Random(3)
    sampled = [
        row | {"sampling_logps": [logp + noise.gauss(0, 0.6) for logp in row["old_logps"]]}
        for row in ft_annotate(completions, run)
    ]
    config.importance_sampling_correction = how
    rows = ft_annotate(sampled, run)
    weights = weights_of(rows, how)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in run.policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    batch = ft_collate(rows, run.tokenizer, config)
    run.totals = {**batch.counts, "tokens": 2 * batch.counts["tokens"]}  # half of a step
    found = ft_loss(run.model, batch, run)
    loss_of_step = found.divide(run.totals)
    loss_of_step.backward()
    gradients = {name: p.grad.clone() for name, p in run.policy.named_parameters() if p.grad is not None}
    run.policy.zero_grad()

    of_policy, of_value, ratios, apart, entropies, clipped = [], [], [], [], [], [0, 0]
    guessed, came = [], []
    for row in rows:
        logps, values, entropy = plain(run, row)
        entropies += entropy.tolist()
        for t in range(len(values)):
            w = weights[len(of_value)]
            ratio, a = torch.exp(logps[t] - row["old_logps"][t]), row["advantages"][t]
            outside = ratio > 1.2 if a > 0 else ratio < 0.8
            clipped[0] += bool(outside)
            of_policy.append(w * (-a * (1.2 if a > 0 else 0.8) if outside else -a * ratio))
            v, target = row["values"][t], row["returns"][t]
            guessed.append(v)
            came.append(target)
            near = v + torch.clamp(values[t] - v, -0.2, 0.2)
            errors = ((values[t] - target) ** 2, (near - target) ** 2)
            clipped[1] += bool(errors[1] > errors[0])
            of_value.append(0.5 * max(errors))
            ratios.append(float(ratio.detach()))
            apart.append(math.log(ratios[-1]))
    tokens = len(of_value)
    assert tokens == 26 and 0 < clipped[0] < tokens and (clipped[1] or config.value_head)
    loss = (sum(of_policy) + 0.7 * sum(of_value)) / (2 * tokens)
    assert float(loss_of_step.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    expected = {name: p.grad for name, p in run.policy.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys() and any("value" in name for name in expected)
    for part in ("companions.value", "model."):
        ours, theirs = (
            torch.cat([grad.flatten() for name, grad in of.items() if name.startswith(part)])
            for of in (gradients, expected)
        )
        assert theirs.norm() > 0 and (ours - theirs).norm() <= 1e-4 * theirs.norm(), part

    told = metric_values(found.metrics)
    of_sampler = {name: value for name, value in told.items() if name.startswith("sampling/")}
    told = {name: value for name, value in told.items() if name not in of_sampler}
    shifts = [a - b for row in rows for a, b in zip(row["old_logps"], row["sampling_logps"], strict=True)]
    assert of_sampler["sampling/sampling_logp_difference/mean"] == pytest.approx(numpy.abs(shifts).mean(), rel=1e-5)
    assert of_sampler["sampling/sampling_logp_difference/max"] == pytest.approx(numpy.abs(shifts).max(), rel=1e-5)
    if how == "auto":
        assert len(of_sampler) == 2, "the built-in backend's completions are the policy's own"
    else:
        assert min(weights) < 1 < max(weights), "else nothing is shown"
        assert of_sampler["sampling/importance_sampling_ratio/mean"] == pytest.approx(numpy.mean(weights), rel=1e-5)
        assert of_sampler["sampling/importance_sampling_ratio/max"] == pytest.approx(max(weights), rel=1e-5)
        assert of_sampler["sampling/importance_sampling_ratio/min"] == pytest.approx(min(weights), rel=1e-5)
        share = sum(weights) ** 2 / (len(weights) * sum(each * each for each in weights))
        assert of_sampler["sampling/effective_sample_size"] == pytest.approx(share, rel=1e-5)
    scored = [row for row in rows if row["score"] is not None]
    kl = sum(row["kl"] for row in rows) / 5
    assert told == pytest.approx(
        {
            "objective/scores": 0.65,
            "objective/kl": kl,
            "objective/non_score_reward": -0.3 * kl,
            "objective/rlhf_reward": 0.65 - 0.3 * kl,
            "objective/entropy": -sum(sum(row["old_logps"]) for row in scored) / 5,
            "policy/approxkl_avg": sum(each * each for each in apart) / tokens / 2,
            "policy/clipfrac_avg": clipped[0] / tokens,
            "policy/entropy_avg": sum(entropies) / tokens,
            "loss/policy_avg": float(sum(of_policy).detach()) / tokens,
            "loss/value_avg": float(sum(of_value).detach()) / tokens,
            "val/clipfrac_avg": clipped[1] / tokens,
            "val/explained_variance": 1 - numpy.mean((numpy.array(came) - guessed) ** 2) / numpy.var(came),
            "val/ratio": sum(ratios) / tokens,
            "val/ratio_var": numpy.var(ratios, ddof=1),
            "val/num_eos_tokens": 5,
            "episode": 12,  # of two rollouts
        },
        rel=2e-4,
    )


def weights_of(rows: list[dict], how: str) -> list[float]:
    """Of all tokens, one row after the other."""
    found: list[float] = []
    for row in rows:
        ratios = [math.exp(a - b) for a, b in zip(row["old_logps"], row["sampling_logps"], strict=True)]
        if how == "token_truncate":
            found += [min(ratio, 3.0) for ratio in ratios]
        elif how == "sequence_mask":
            found += [math.prod(ratios) if math.prod(ratios) <= 3 else 0.0] * len(ratios)
        else:
            found += [1.0] * len(ratios)
    return found


def test_before_the_first_update_nothing_is_clipped(config, completions):
    """Every ratio is 1, and the loss of the policy is minus the mean of whitened advantages: nought."""
    run = ready_run(config)
    batch = ft_collate(ft_annotate(completions, run), run.tokenizer, config)
    run.totals = batch.counts
    told = metric_values(ft_loss(run.model, batch, run).metrics)
    for name in ("policy/clipfrac_avg", "val/clipfrac_avg", "policy/approxkl_avg", "loss/policy_avg"):
        assert told[name] == pytest.approx(0, abs=1e-5), name
    assert told["val/ratio"] == pytest.approx(1, abs=1e-5)


def test_episodes_are_counted_over_rollouts(make, prompts, completions):
    run = ready_run(make(prompts, value_head=True, kl_coef=0.0))
    assert not run.models
    assert {row["episode"] for row in ft_annotate(completions, run)} == {6}
    rows = ft_annotate(completions[:4], run)
    assert {row["episode"] for row in rows} == {10}
    batch = ft_collate(rows, run.tokenizer, run.config)
    run.totals = batch.counts
    told = metric_values(ft_loss(run.model, batch, run).metrics)
    assert "objective/kl" not in told and told["objective/rlhf_reward"] == told["objective/scores"]


@pytest.mark.parametrize("which", [[], [3]], ids=["no rows", "a row without targets"])
def test_nothing_to_learn_from_is_a_loss_of_nought_with_a_gradient(config, completions, which):
    """As on a rank that has no rows left: it still takes part."""
    run = ready_run(config)
    rows = ft_annotate([completions[index] for index in which], run)
    batch = ft_collate(rows, run.tokenizer, config)
    run.totals = batch.counts
    found = ft_loss(run.model, batch, run)
    loss_of_step = found.divide(run.totals)
    assert float(loss_of_step.detach()) == 0
    loss_of_step.backward()
    for name, parameter in run.policy.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    assert set(metric_values(found.metrics)) <= {"val/num_eos_tokens", "episode"}
