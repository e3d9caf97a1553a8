"""Whole runs of five steps beside TRL's: the same completions and rewards at every step, whatever the policy has
become. A backend that says what it was told, and TRL's trainer that is given the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ft_sdpo.config import OF_DISTILLATION, OF_POLICY, SDPOConfig

from ft_host.testing import (
    TOLERANCES,
    assert_same,
    differences,
    lines,
    run_in,
    save_adapter,
    trl_arguments,
    trl_model,
    trl_rows,
    trl_trajectory,
)

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "max_completion_length",
    "temperature",
    "disable_dropout",
    "mask_truncated_completions",
    "distillation_weight",
    *OF_DISTILLATION,
    *OF_POLICY,
)
LOSS, POLICY = "self_distillation/distillation_loss", "self_distillation/policy_loss"
# What TRL calls what is said of rewards; each of ours has one name, that of the other methods with rollouts.
CALLED = {
    "reward": "self_distillation/reward_mean",
    "reward_std": "self_distillation/reward_std",
    "frac_reward_zero_std": "self_distillation/flat_group_fraction",
    "rewards/first/mean": "self_distillation/rewards/first",
    "rewards/second/mean": "self_distillation/rewards/second",
}
SAME = (
    "self_distillation/group_reward_std_mean",
    "self_distillation/success_group_fraction",
    "self_distillation/success_sample_fraction",
    "self_distillation/feedback_available_fraction",
    "self_distillation/feedback_used_fraction",
    "self_distillation/reprompt_sample_fraction",
    "completions/mean_length",
    "completions/clipped_ratio",
)


def trainer_of(config: SDPOConfig, completions_of: Any, rewards_of: Any, as_is: bool = False) -> Any:
    """TRL's trainer for what `config` says, with given completions and rewards. Its distillation is a mean over all
    completions, also those without a teacher; here it is made one over the others, unless it is taken `as_is`."""
    from transformers import AutoTokenizer
    from trl.experimental.sdpo import SDPOConfig as Theirs
    from trl.experimental.sdpo import SDPOTrainer

    class Given(SDPOTrainer):
        def _generate(self, prompt_ids):
            size = self.num_generations
            texts = self._tokenizer.batch_decode(prompt_ids)
            return prompt_ids, [ids for text in texts[::size] for ids in completions_of(text, size)]

        def _compute_self_distillation_loss(self, model, inputs, distillation_logits):
            loss = super()._compute_self_distillation_loss(model, inputs, distillation_logits)
            taught = distillation_logits.loss_mask.sum(1) > 0
            return loss if as_is else loss * len(taught) / taught.sum().clamp(min=1)

    def first(completion_ids, **columns):
        return [rewards_of(ids)[0] for ids in completion_ids]

    def second(completion_ids, **columns):
        return [rewards_of(ids)[1] for ids in completion_ids]

    return Given(
        model=trl_model(config),
        reward_funcs=[first, second],
        args=Theirs(**trl_arguments(config, *OWN), shuffle_dataset=False, max_prompt_length=None),
        train_dataset=trl_rows(config.dataset),
        processing_class=AutoTokenizer.from_pretrained(config.model, padding_side="left"),
    )


def both(config: SDPOConfig, fixed: Any, pays: Any, as_is: bool = False) -> tuple[list[dict], list[dict]]:
    ours = lines(run_in(config, "ours"))
    return ours, trl_trajectory(trainer_of(config, fixed, pays, as_is))


# Of sampled_token the value of a token is of either sign and of size 4: that of what is added up counts for round-off.
ROUND_OFF = 2e-5


def assert_parity(ours: list[dict], theirs: list[dict], *own: str, sampled: bool) -> None:
    allowed = {name: most for name, most in TOLERANCES.items() if name != "num_tokens"}  # which it doesn't count
    for name, value in differences(ours, theirs, tuple(allowed)).items():
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True)]
        least = ROUND_OFF if name == "loss" and sampled else 2e-7
        near = all(math.isclose(a, b, rel_tol=allowed[name], abs_tol=least) for a, b in pairs)
        assert near, f"{name}: relative difference {value:.2e}; by step: {pairs}"
    for mine, other in zip(ours, theirs, strict=True):
        for name in own:
            least = ROUND_OFF if name == LOSS and sampled else 2e-7
            assert mine.get(name, 0.0) == pytest.approx(other[name], rel=1e-5, abs=least), name
        if "reward" in mine:
            for name in (*CALLED, *SAME):
                if name in mine:
                    assert mine[name] == pytest.approx(other[CALLED.get(name, name)], rel=1e-5, abs=1e-7), name


FEEDBACK = {"include_environment_feedback": True}
TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 10}
FIELDS = {
    "as it comes": {},
    "feedback": FEEDBACK,
    "feedback alone, live": FEEDBACK | {"use_successful_as_teacher": False, "teacher_model_kind": "live"},
    "eight generations": {"num_generations": 8, "success_reward_threshold": 0.5},
    "base, top tokens": TOPK | {"distillation_alpha": 0.5, "teacher_model_kind": "base"},
    "a tail": TOPK | FEEDBACK | {"distillation_alpha": 0.0, "distillation_add_tail": True},
    "all logits": {"distillation_mode": "full_logits", "teacher_update_rate": 0.5, "teacher_sync_steps": 2},
    "temperature": {"temperature": 0.7},
    "two passes": {"num_iterations": 2, "distillation_is_clip": 1.05},
    "two steps, two passes": {"generation_batch_size": 16, "num_iterations": 2},
    "mixed": {"distillation_weight": 0.4},
    "mixed, two passes": {"distillation_weight": 0.4, "num_iterations": 2, "epsilon": 0.05, "epsilon_high": 0.1},
    "policy alone": {"distillation_weight": 0.0, "num_iterations": 2, "scale_rewards": "batch"},
    "policy, rows": {"distillation_weight": 0.0, "num_iterations": 2, "loss_type": "grpo"},
    "policy, budget": {"distillation_weight": 0.0, "num_iterations": 2, "loss_type": "dr_grpo"},
    "policy, sequences": {
        "distillation_weight": 0.0,
        "num_iterations": 2,
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.02,
    },
    "masked": {"mask_truncated_completions": True, "distillation_weight": 0.5},
}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict]]:
    """What runs of FIELDS have logged: those that one test has made, another needn't make again."""
    return {}


@pytest.mark.parametrize("name", FIELDS)
def test_five_steps(name, make_fixed, fixed, pays, trained):
    config = make_fixed(**FIELDS[name])
    ours, theirs = both(config, fixed, pays)
    trained[name] = ours
    own = (LOSS,) * (config.distillation_weight > 0) + (POLICY,) * (config.distillation_weight < 1)
    assert_parity(ours, theirs, *own, sampled=config.distillation_mode == "sampled_token")
    assert max(line["grad_norm"] for line in ours) > 1e-2


def test_the_fields_matter(make_fixed, trained):
    """Each of the runs above is another one."""
    losses = [trained.get(name) or lines(run_in(make_fixed(**fields), name)) for name, fields in FIELDS.items()]
    for index, run in enumerate(losses):
        for other in losses[:index]:
            assert any(abs(a["grad_norm"] - b["grad_norm"]) > 1e-6 for a, b in zip(run, other, strict=True)), index


def test_completions_without_a_teacher_are_in_no_mean(make_fixed, fixed, pays, rows):
    """TRL divides by them all the same, so that its gradient shrinks as fewer are taught; the authors' code doesn't.
    Both numbers."""
    ours, theirs = both(make_fixed(rows[2:], max_steps=1), fixed, pays, as_is=True)
    share = ours[0]["self_distillation/reprompt_sample_fraction"]
    print("ours", ours[0]["loss"], "TRL", theirs[0]["loss"], "taught", share)
    assert 0 < share < 1
    assert ours[0]["loss"] * share == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert ours[0][LOSS] == pytest.approx(theirs[0][LOSS], rel=1e-5), "its metric is over the others"


def test_without_scale_nothing_is_divided_by(make_fixed, fixed, pays):
    """In TRL rewards are divided by 1 + 1e-4 all the same, and its metric of groups is 1."""
    fields = {"distillation_weight": 0.0, "scale_rewards": "none", "max_steps": 1, "max_grad_norm": 0.0}
    ours, theirs = both(make_fixed(**fields), fixed, pays)
    print("ours", ours[0]["grad_norm"], "TRL", theirs[0]["grad_norm"])
    assert ours[0]["grad_norm"] / theirs[0]["grad_norm"] == pytest.approx(1 + 1e-4, rel=2e-5)
    assert theirs[0]["self_distillation/group_reward_std_mean"] == 1
    assert ours[0]["self_distillation/group_reward_std_mean"] < 0.9


def test_accumulation(make_fixed, fixed, pays):
    """Steps of two micro-batches are those of one. TRL's policy loss is a mean of micro-batches' means over tokens,
    which isn't that of the step: both numbers, in the second pass, where ratios aren't 1."""
    fields = {"distillation_weight": 0.5, "num_iterations": 2, "epsilon": 0.05, "max_steps": 2}
    halves = fields | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = lines(run_in(make_fixed(**fields), "whole"))
    ours, theirs = both(make_fixed(**halves), fixed, pays)
    assert_same(whole, ours, rel=1e-4, abs=2e-6)
    print("ours", ours[0]["grad_norm"], "TRL", theirs[0]["grad_norm"])
    assert abs(theirs[0]["grad_norm"] / ours[0]["grad_norm"] - 1) > 1e-3


def test_lora(make_fixed, fixed, pays, llama, tmp_path):
    """A live teacher has the adapter as it is, in both."""
    adapter = save_adapter(llama, Path(tmp_path / "adapter"))
    config = make_fixed(model=str(adapter), use_peft=True, learning_rate=1e-2, teacher_model_kind="live", **FEEDBACK)
    assert_parity(*both(config, fixed, pays), LOSS, sampled=True)
