"""The numbers of this package beside those of TRL's OnlineDPOTrainer, on the same completions, rewards and weights:
loss, gradient and metrics of a step.

TRL's trainer is handed the completions in the place of those that it would sample, and makes loss and gradient of them
(`training_step`). It takes log-probs at temperature 1 whatever the run's is, so that both are compared there.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ft_online_dpo.config import OnlineDPOConfig
from ft_online_dpo.method import ft_annotate, ft_collate, ft_loss, ft_rollout

from ft_host.testing import forget_accelerate, metric_values, ready_run, save_tiny, tiny_llama

EARNED = [0.25, 1.5, 2.0, -1.0, 0.5, 0.75, 3.0, 1.0]  # of two completions of four prompts
# theirs, and ours
NAMES = {
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margins": "rewards/margins",
    "rewards/accuracies": "rewards/accuracies",
    "logps/chosen": "logps/chosen",
    "logps/rejected": "logps/rejected",
    "objective/scores": "reward",
    "objective/scores_margin": "pairs/reward_margin",
}


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def ours_of(config: OnlineDPOConfig, given: Any) -> tuple[float, torch.Tensor, dict[str, float]]:
    run = ready_run(config)
    rollout = ft_rollout(given.prompts, given)
    batch = ft_collate(ft_annotate(rollout.rows, run), run.tokenizer, config)
    run.totals = batch.counts
    found = ft_loss(run.model, batch, run)
    loss = found.divide(batch.counts)
    loss.backward()
    return float(loss.detach()), gradient(run.policy.model).clone(), metric_values(rollout.metrics, found.metrics)


def theirs_of(config: OnlineDPOConfig, given: Any, folder: Any) -> tuple[float, torch.Tensor, dict[str, float]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.online_dpo import OnlineDPOConfig as Theirs
    from trl.experimental.online_dpo import OnlineDPOTrainer

    prompts, pad = given.prompts, 0
    completions = given.generate(prompts, 2)
    # all first completions, then all second ones; prompts padded on their left, completions on their right
    order = [2 * index + place for place in (0, 1) for index in range(len(prompts))]
    widest = max(len(row["prompt_ids"]) for row in prompts)
    longest = max(len(each.token_ids) for each in completions)
    prompt_ids = [[pad] * (widest - len(row["prompt_ids"])) + row["prompt_ids"] for row in prompts] * 2
    ids = [completions[at].token_ids + [pad] * (longest - len(completions[at].token_ids)) for at in order]
    seen = [[1] * len(completions[at].token_ids) for at in order]
    made = (
        torch.tensor(prompt_ids),
        torch.tensor(prompt_ids).ne(pad).long(),
        torch.tensor(ids),
        torch.tensor([each + [0] * (longest - len(each)) for each in seen]),
        None,
    )
    trainer = OnlineDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config.model),
        ref_model=AutoModelForCausalLM.from_pretrained(config.ref_model),
        reward_funcs=lambda prompts, completions, **columns: [given.earned[at] for at in order],
        args=Theirs(
            output_dir=str(folder),
            per_device_train_batch_size=len(prompts),
            max_new_tokens=8,
            beta=config.beta,
            loss_type=config.loss_type,
            missing_eos_penalty=config.missing_eos_penalty,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "p"}] * len(prompts)),
        processing_class=AutoTokenizer.from_pretrained(config.model),
    )
    trainer._generate = lambda model, prompts, images=None: made
    loss = trainer.training_step(trainer.model, {"prompt": [row["prompt"] for row in prompts]})
    found = float(loss), gradient(trainer.model).clone(), {name: of[-1] for name, of in trainer.stats.items() if of}
    forget_accelerate()
    return found


@pytest.mark.parametrize(
    "fields",
    [{}, {"loss_type": "ipo"}, {"beta": 0.5}, {"missing_eos_penalty": 2.0}],
    ids=["sigmoid", "ipo", "beta", "penalty"],
)
def test_a_step(make, answers, tmp_path, fields):
    """Of a policy that has left its reference."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3))
    config = make(OnlineDPOConfig, num_generations=2, temperature=1.0, ref_model=str(other), **fields)
    given = answers(config, EARNED)
    loss, grad, metrics = ours_of(config, given)
    their_loss, their_grad, theirs = theirs_of(config, given, tmp_path / "trl")
    assert math.isclose(loss, their_loss, rel_tol=1e-5)
    assert float(their_grad.norm()) > 1e-3 and float((grad - their_grad).norm()) <= 1e-4 * float(their_grad.norm())
    for name, own in NAMES.items():
        if name == "objective/scores" and config.missing_eos_penalty:
            continue  # theirs is after the penalty, ours what the reward gave
        assert metrics[own] == pytest.approx(theirs[name], rel=1e-5, abs=2e-6), name
    assert abs(metrics["rewards/margins"]) > 1e-3, "the reference was the model itself"


def test_trl_learns_from_pairs_that_nothing_tells_apart(make, answers, tmp_path):
    """Of equal rewards its first completion is chosen; here such a prompt has no pair."""
    other = save_tiny(tmp_path / "other", tiny_llama(seed=3))
    config = make(OnlineDPOConfig, num_generations=2, temperature=1.0, ref_model=str(other))
    given = answers(config, [1.0, 1.0, 2.0, 2.0])
    loss, grad, _ = ours_of(config, given)
    their_loss, their_grad, _ = theirs_of(config, given, tmp_path / "trl")
    assert loss == 0 and float(grad.norm()) == 0
    assert their_loss > 0.1 and float(their_grad.norm()) > 1e-3
