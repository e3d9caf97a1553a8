"""What can be known wrong of a config or of rows is refused by name, before a model is loaded."""

from __future__ import annotations

import dataclasses

import pytest
from ft_sdpo.config import OF_DISTILLATION, OF_POLICY, SDPOConfig
from ft_sdpo.method import ft_models, ft_prepare

from ft_host.api import ConfigError, ModelSpec, RowError
from ft_host.testing import resolve, tiny_tokenizer

OWN = (
    "num_generations",
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "disable_dropout",
    "mask_truncated_completions",
    "distillation_weight",
    *OF_DISTILLATION,
    *OF_POLICY,
)


def test_defaults_are_trls():
    """But for a lower learning rate; its field says why."""
    from trl.experimental.sdpo import SDPOConfig as Theirs

    theirs = {field.name: field.default for field in dataclasses.fields(Theirs)}
    assert {name: getattr(SDPOConfig(), name) for name in OWN} == {name: theirs[name] for name in OWN}


def test_what_a_field_goes_by_is_its_default():
    """Those that are refused by name where they were changed."""
    for name, usual in (OF_DISTILLATION | OF_POLICY).items():
        assert getattr(SDPOConfig(), name) == usual, name


NO_SOLUTION = {"use_successful_as_teacher": False, "include_environment_feedback": True}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"distillation_alpha": 0.5}, "distillation_alpha: 0.5 with distillation_mode sampled_token"),
        (
            {"distillation_mode": "topk_logits"},
            "distillation_topk: isn't set, and distillation_mode topk_logits needs it",
        ),
        ({"distillation_topk": 5}, "distillation_topk: has no effect on sampled_token"),
        ({"distillation_mode": "full_logits", "distillation_add_tail": True}, "distillation_add_tail: has no effect"),
        (
            {"teacher_update_rate": 0.1, "teacher_model_kind": "live"},
            "teacher_update_rate: has no effect on a teacher_mod",
        ),
        ({"distillation_is_clip": 3.0}, "distillation_is_clip: has no effect where each rollout is used for one"),
        (
            {"use_successful_as_teacher": False},
            "use_successful_as_teacher: without it and without include_environment_f",
        ),
        (
            NO_SOLUTION | {"success_reward_threshold": 0.5},
            "success_reward_threshold: has no effect without use_successful",
        ),
        (NO_SOLUTION | {"solution_template": "{successful_previous_attempt}"}, "solution_template: has no effect"),
        (
            NO_SOLUTION | {"environment_feedback_only_without_solution": True},
            "environment_feedback_only_without_solution: ",
        ),
        ({"environment_feedback_only_without_solution": True}, "has no effect without include_environment_feedback"),
        (
            {"feedback_template": "{feedback_raw}"},
            "feedback_template: has no effect without include_environment_feedback",
        ),
        (
            {"reprompt_template": "{prompt}"},
            "reprompt_template: has no slot {solution}; expected {prompt} and {solution}",
        ),
        ({"reprompt_template": "{solution}"}, "reprompt_template: has no slot {prompt}"),
        ({"reprompt_template": "{prompt}{solution}", "include_environment_feedback": True}, "has no slot {feedback}"),
        ({"reprompt_template": "{prompt}{solution}{else}"}, "has the slot {else}"),
        ({"solution_template": "none"}, "solution_template: has no slot {successful_previous_attempt}"),
        ({"feedback_template": "{0}", "include_environment_feedback": True}, "feedback_template: has the slot {0}"),
        ({"solution_template": "{"}, "solution_template: .*a brace that is text is written twice"),
        ({"num_generations": 1}, "num_generations: with 1 there is no other completion to learn from"),
        ({"num_generations": 1, "distillation_weight": 0.5} | NO_SOLUTION, "num_generations: the policy loss compares"),
        ({"epsilon": 0.1}, "epsilon: has no effect with distillation_weight: 1, which has no policy loss"),
        ({"loss_type": "grpo"}, "loss_type: has no effect with distillation_weight: 1"),
        ({"scale_rewards": "none"}, "scale_rewards: has no effect with distillation_weight: 1"),
        ({"distillation_weight": 0.5, "epsilon": 0.1}, "epsilon: has no effect where each rollout is used for one"),
        (
            {"distillation_weight": 0.0, "teacher_model_kind": "live"},
            "teacher_model_kind: has no effect with distillation_w",
        ),
        ({"distillation_weight": 0.0, "max_reprompt_len": 5}, "max_reprompt_len: has no effect"),
        ({"tools": ["a.py:b"]}, "tools: the teacher's prompt can't have what tools say"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SDPOConfig(reward=["a.py:b"], **fields).check()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        NO_SOLUTION,
        NO_SOLUTION | {"num_generations": 1, "reprompt_template": "{prompt}{feedback}"},
        {"reprompt_template": "{prompt}{solution}"},
        {"distillation_mode": "topk_logits", "distillation_topk": 100},
        {"distillation_weight": 0.5, "epsilon": 0.1, "num_iterations": 2, "distillation_is_clip": None},
        {"distillation_weight": 0.0, "scale_rewards": "batch"},
        {"num_generations": 1, "dont_reprompt_on_self_success": False},
    ],
)
def test_accepted(fields):
    SDPOConfig(reward=["a.py:b"], **fields).check()


def test_beta_is_no_field():
    """TRL reads it and never uses it."""
    with pytest.raises(ConfigError, match="beta"):
        resolve(SDPOConfig, None, ["--model", "m", "--dataset", "d", "--reward", "a.py:b", "--beta", "0.1"])


def test_a_reward_is_required():
    with pytest.raises(ConfigError, match="reward"):
        resolve(SDPOConfig, None, ["--model", "m", "--dataset", "d"])


def test_the_models_that_are_asked_for():
    assert ft_models(SDPOConfig()) == {"teacher": ModelSpec(sync_steps=1, sync_alpha=0.05)}
    assert ft_models(SDPOConfig(teacher_model_kind="base")) == {"teacher": ModelSpec()}
    assert ft_models(SDPOConfig(teacher_model_kind="live")) == {"teacher": ModelSpec(current_policy=True)}
    assert ft_models(SDPOConfig(distillation_weight=0.0)) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": [{"role": "assistant", "content": "a"}]}, "ends with a message of 'assistant'"),
        (
            {"prompt": "a", "privileged_context": 3},
            "column privileged_context: found int '3', expected text, or nothing",
        ),
    ],
)
def test_refused_rows(row, said):
    with pytest.raises(RowError, match=said):
        ft_prepare(row, tiny_tokenizer(), SDPOConfig(include_environment_feedback=True))


def test_rows_without_feedback_are_fine():
    for row in ({"prompt": "a"}, {"prompt": "a", "privileged_context": None}):
        assert ft_prepare(row, tiny_tokenizer(), SDPOConfig(include_environment_feedback=True))["prompt"] == "a"
