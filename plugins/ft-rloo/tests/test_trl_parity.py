"""The numbers of this package beside those of TRL's RLOOTrainer on the same completions and rewards: advantages, loss,
gradient and every metric, with one set of weights that sampled and another that is trained.

TRL's trainer completes nothing here: it is given the completions. Where it is wrong, both numbers are shown, and ours
is compared with one computed by hand.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ft_rloo.config import RLOOConfig
from ft_rloo.method import ft_annotate, ft_collate, ft_loss, ft_rollout

from ft_host.testing import disturb, metric_values, ready_run, trl_arguments, trl_model, trl_rows

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "beta",
    "epsilon",
    "epsilon_high",
    "normalize_advantages",
    "reward_clip_range",
    "mask_truncated_completions",
    "max_completion_length",
    "temperature",
    "disable_dropout",
)
METRICS = (
    "entropy",
    "kl",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "clip_ratio/low_mean",
    "clip_ratio/low_min",
    "clip_ratio/high_mean",
    "clip_ratio/high_max",
    "clip_ratio/region_mean",
    "rewards/first/mean",
    "rewards/first/std",
    "rewards/second/mean",
    "rewards/second/std",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "completions/mean_terminated_length",
    "completions/min_terminated_length",
    "completions/max_terminated_length",
    "completions/clipped_ratio",
)


def trainer_of(config: RLOOConfig, answers: Any) -> Any:
    """TRL's trainer for what `config` says, with the completions and rewards of `answers`."""
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = answers(config)

    class Given(trl.RLOOTrainer):
        def _generate_single_turn(self, prompt_ids, *_):
            texts = self.processing_class.batch_decode(prompt_ids)
            size = self.num_generations
            rows = [{"prompt": text} for text in texts[::size]]
            return [each.token_ids for each in run.generate(rows, size)]

    def function(index: int, name: str) -> Any:
        def reward(completion_ids, **columns):
            return [run.rewards(ids)[index] for ids in completion_ids]

        reward.__name__ = name
        return reward

    names = ("first", "second")[: len(run.rewards([1]))]
    trainer = Given(
        model=trl_model(config),
        reward_funcs=[function(index, name) for index, name in enumerate(names)],
        args=trl.RLOOConfig(**trl_arguments(config, *OWN), reward_weights=config.reward_weights or None),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
    )
    if config.ref_model is not None:  # which it makes of the policy's own weights
        trainer.ref_model.load_state_dict(AutoModelForCausalLM.from_pretrained(config.ref_model).state_dict())
    return trainer


def of_trl(config: RLOOConfig, answers: Any, rows: list[dict], after: Any) -> dict[str, Any]:
    trainer = trainer_of(config, answers)
    trainer.model.train()
    made = trainer._generate_and_score_completions([row for row in rows for _ in range(config.num_generations)])
    after(trainer.model)
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, made)
    loss.backward()
    return {
        "advantages": made["advantages"].tolist(),
        "loss": float(loss.detach()),
        "grads": {name: each.grad.clone() for name, each in trainer.model.named_parameters()},
        "metrics": {name: values[-1] for name, values in trainer._metrics["train"].items()},
        "losses": per_row(trainer, made),
    }


def per_row(trainer: Any, made: dict[str, Any]) -> list[float]:
    """TRL's loss of each row by itself, of which it takes the mean."""
    alone = []
    with torch.no_grad():
        for index in range(len(made["advantages"])):
            alone.append(
                float(
                    trainer._compute_loss(
                        trainer.model, {name: value[index : index + 1] for name, value in made.items()}
                    )
                )
            )
    return alone


def prompt_rows(run: Any, rows: list[dict]) -> list[dict]:
    return [
        {
            "prompt": row["prompt"],
            "prompt_ids": run.tokenizer(row["prompt"])["input_ids"],
            "columns": row,
            "group": index,
        }
        for index, row in enumerate(rows)
    ]


def of_ours(config: RLOOConfig, answers: Any, rows: list[dict], after: Any, run: Any) -> dict[str, Any]:
    rollout = ft_rollout(prompt_rows(run, rows), answers(config))
    made = ft_annotate(rollout.rows, run)
    after(run.policy.causal_lm)
    batch = ft_collate(made, run.tokenizer, config)
    run.totals = batch.counts
    run.policy.zero_grad()
    found = ft_loss(run.policy, batch, run)
    loss = found.divide(run.totals)
    loss.backward()
    return {
        "advantages": [row["advantage"] for row in made],
        "loss": float(loss.detach()),
        "grads": {name: each.grad.clone() for name, each in run.policy.causal_lm.named_parameters()},
        "metrics": metric_values(rollout.metrics, found.metrics),
        "rows": made,
    }


def assert_same_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], rel: float = 1e-4) -> None:
    """The whole gradient, and that of each tensor, by norms."""
    assert ours.keys() == theirs.keys()
    whole = math.sqrt(sum(float(each.square().sum()) for each in theirs.values()))
    apart = math.sqrt(sum(float((ours[name] - each).square().sum()) for name, each in theirs.items()))
    assert whole > 1e-3 and apart <= rel * whole, apart / whole
    for name, each in theirs.items():
        assert (ours[name] - each).norm() <= rel * (each.norm() + 1e-3 * whole), name


def nothing(model: Any) -> None:
    """The policy that is trained is the one that sampled."""


def beside(config: RLOOConfig, answers: Any, rows: list[dict], after: Any) -> tuple[dict, dict]:
    ours = of_ours(config, answers, rows, after, ready_run(config))
    return ours, of_trl(config, answers, rows, after)


def assert_same_metrics(ours: dict[str, float], theirs: dict[str, float], skip: tuple[str, ...] = ()) -> None:
    for name in METRICS:
        if name in theirs and name not in skip:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name
    assert set(theirs) - set(ours) <= {"num_tokens"}, "a metric of TRL's that we don't have"


def on(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields for a rollout of eight completions that is gone through twice."""
    return {"per_device_train_batch_size": 8, "num_iterations": 2, "beta": 0.3} | fields


OPTIONS = {
    "defaults": {"beta": 0.05},
    "no KL": {"beta": 0.0},
    "four generations": {"num_generations": 4},
    "eight generations": {"num_generations": 8},
    "weights": {"reward_weights": [0.5, -2.0]},
    "reward_clip_range": {"reward_clip_range": [-0.5, 1.0]},
    "normalize_advantages": {"normalize_advantages": True, "num_generations": 4},
    "temperature": {"temperature": 0.7},
    "epsilon": {"epsilon": 0.05, "num_generations": 4},
    "epsilon_high": {"epsilon_high": 0.6, "num_generations": 4},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, make, answers, prompts, reference):
    """After an update that takes ratios far from 1, so that some are clipped."""
    fields = on(OPTIONS[name])
    config = make(prompts, ref_model=str(reference) if fields["beta"] else None, **fields)
    rows = prompts[: 8 // config.num_generations]
    ours, theirs = beside(config, answers, rows, disturb)
    assert ours["advantages"] == pytest.approx(theirs["advantages"], rel=1e-5, abs=1e-5)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert_same_gradients(ours["grads"], theirs["grads"])
    # TRL's counts groups whose rewards less KL are all equal: none, where there is a KL
    assert_same_metrics(ours["metrics"], theirs["metrics"], ("frac_reward_zero_std",) if config.beta else ())
    assert 0 < ours["metrics"]["clip_ratio/region_mean"] < 1
    assert any(row["reward"] is None for row in ours["rows"]) or config.num_generations > 4


def test_epsilon_matters(make, answers, prompts):
    losses = {
        epsilon: of_ours(
            make(prompts, **on({"epsilon": epsilon, "beta": 0.0})),
            answers,
            prompts[:4],
            disturb,
            ready_run(make(prompts, **on({"epsilon": epsilon, "beta": 0.0}))),
        )["loss"]
        for epsilon in (0.05, 0.5)
    }
    assert abs(losses[0.05] - losses[0.5]) > 1e-3


# ---------------------------------------------------------------- on policy


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("generations", [2, 4])
def test_first_update(beta, generations, make, answers, prompts, reference):
    """One update a rollout: the head makes the gradient, from weights known beforehand. Both losses are 0 but for
    round-off, and for completions without a reward nobody's is: they are in no mean, and in no loss of either."""
    config = make(
        prompts,
        per_device_train_batch_size=8,
        beta=beta,
        num_generations=generations,
        temperature=0.8,
        ref_model=str(reference) if beta else None,
    )
    ours, theirs = beside(config, answers, prompts[: 8 // generations], nothing)
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
    assert_same_gradients(ours["grads"], theirs["grads"])
    assert_same_metrics(ours["metrics"], theirs["metrics"], ("frac_reward_zero_std",) if beta else ())
    assert ours["metrics"]["clip_ratio/region_mean"] == 0


def test_both_paths_are_equal(make, answers, prompts, reference):
    """The gradient made in the forward pass, and that of the clipped loss with the log-probs of the rollout: the same
    run with one update a rollout, and with two of which the first is looked at."""
    fields = {"per_device_train_batch_size": 8, "num_generations": 4, "ref_model": str(reference), "beta": 0.3}
    known, clipped = (
        of_ours(config, answers, prompts[:2], nothing, ready_run(config))
        for config in (make(prompts, **fields), make(prompts, num_iterations=2, **fields))
    )
    assert known["advantages"] == clipped["advantages"]
    assert known["loss"] == pytest.approx(clipped["loss"], abs=1e-6)
    assert_same_gradients(known["grads"], clipped["grads"], rel=1e-5)
    for name, value in known["metrics"].items():
        assert value == pytest.approx(clipped["metrics"][name], rel=1e-5, abs=1e-6), name


# ---------------------------------------------------------------- where TRL is wrong, or says something else


def test_masked_completions_stay_in_trls_denominator(make, answers, prompts, reference):
    """Cut short, they have no part in TRL's gradient, but in the number that it is divided by: ours is that of the
    completions that are left. By hand: the sum of TRL's losses of these, divided by how many there are."""
    fields = on({"num_generations": 4, "mask_truncated_completions": True, "ref_model": str(reference)})
    ours, theirs = beside(make(prompts, **fields), answers, prompts[:2], disturb)
    assert ours["advantages"] == pytest.approx(theirs["advantages"], rel=1e-5, abs=1e-5)
    left = [any(row["sampled"]) for row in ours["rows"]]
    assert sum(left) == 6 and len(left) == 8
    by_hand = sum(loss for loss, kept in zip(theirs["losses"], left, strict=True) if kept) / 6
    assert ours["loss"] == pytest.approx(by_hand, rel=1e-5)
    assert theirs["loss"] == pytest.approx(sum(theirs["losses"]) / 8, rel=1e-5)
    assert abs(ours["loss"] - theirs["loss"]) > 1e-2
    assert_same_gradients(ours["grads"], {name: each * 8 / 6 for name, each in theirs["grads"].items()})
    for name in ("kl", "entropy", "reward", "completions/clipped_ratio"):
        assert ours["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-5), name
    for name in ("low", "high", "region"):  # shares of those that are left
        mine, of_all = (each["metrics"][f"clip_ratio/{name}_mean"] for each in (ours, theirs))
        assert mine == pytest.approx(of_all * 8 / 6, rel=1e-6)


def test_groups_without_variance(make, answers, prompts, reference):
    """With a KL the rewards of a group are never equal in TRL's `frac_reward_zero_std`, which takes it off before it
    looks. Ours is of the rewards: all four groups here."""
    config = make(prompts, **on({"ref_model": str(reference)}))

    def constant(given: RLOOConfig) -> Any:
        return answers(given, rewards=lambda ids: (1.0, 0.5))

    ours, theirs = beside(config, constant, prompts[:4], disturb)
    assert ours["metrics"]["frac_reward_zero_std"] == 1
    assert theirs["metrics"]["frac_reward_zero_std"] == 0
    assert_same_gradients(ours["grads"], theirs["grads"])  # the KL alone


def test_nothing_is_said_of_any_completion(make, answers, prompts):
    """No reward at all: no advantage, no gradient."""
    config = make(prompts, **on({"beta": 0.0}))

    def silent(given: RLOOConfig) -> Any:
        return answers(given, rewards=lambda ids: (None, None))

    ours, theirs = beside(config, silent, prompts[:4], disturb)
    assert set(ours["advantages"]) == set(theirs["advantages"]) == {0.0}
    assert ours["loss"] == theirs["loss"] == 0
    assert not any(each.any() for each in ours["grads"].values())
    assert "reward" not in ours["metrics"] and math.isnan(theirs["metrics"]["reward"])
