"""What teachers are asked: which attempt is shown for which, by hand and as TRL does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ft_sdpo.config import SDPOConfig
from ft_sdpo.method import attempt_row, ft_collate
from ft_sdpo.reprompt import attempts, feedback_of, metrics_of, reprompt, teacher_ids

from ft_host.api import Completion, Drop
from ft_host.testing import metric_values, tiny_tokenizer

TEXTS = ["wrong", "right <think>hm\nwell</think>", "also right", "none"]
REWARDS = [0.5, 1.0, 1.5, None]
SILENT = [None] * 4


def solutions(**fields: Any) -> list[str | None]:
    return [each.solution for each in attempts(TEXTS, REWARDS, SILENT, SDPOConfig(**fields))]


def test_the_first_other_success_is_shown():
    assert solutions() == [TEXTS[1], TEXTS[2], TEXTS[1], TEXTS[1]]
    assert solutions(dont_reprompt_on_self_success=False) == [TEXTS[1]] * 4
    assert solutions(success_reward_threshold=1.2) == [TEXTS[2], TEXTS[2], None, TEXTS[2]]
    assert solutions(remove_thinking_from_demonstration=True) == ["right", TEXTS[2], "right", "right"]
    assert solutions(use_successful_as_teacher=False, include_environment_feedback=True) == SILENT


def test_thoughts_that_the_prompt_opened_are_removed():
    """The completions have their end alone. Thoughts that never end leave nothing to show: the next success is."""
    config = SDPOConfig(remove_thinking_from_demonstration=True, dont_reprompt_on_self_success=False)
    texts, rewards = ["hm, 6 times 7", "hm\nwell</think>\n42", "it is 42"], [1.0, 1.0, 1.0]
    found = attempts(texts, rewards, [None] * 3, config, "<think>\n")
    assert [each.solution for each in found] == ["42"] * 3
    assert attempts(texts[1:2], [1.0], [None], config)[0].solution == "42", "whatever is known of the prompt"
    found = attempts(["a</reason>b"], [1.0], [None], config, "<reason>")
    assert found[0].solution == "b"
    assert attempts(texts[:1], [1.0], [None], config)[0].solution == texts[0], "nothing was opened"


def test_feedback():
    told = ["bad", " ", None, "worse"]
    assert [each.feedback for each in attempts(TEXTS, REWARDS, told, SDPOConfig())] == SILENT
    shown = attempts(TEXTS, REWARDS, told, SDPOConfig(include_environment_feedback=True))
    assert [each.feedback for each in shown] == ["bad", None, None, "worse"]
    assert [each.told for each in shown] == [True, False, False, True]
    config = SDPOConfig(include_environment_feedback=True, environment_feedback_only_without_solution=True)
    assert [each.feedback for each in attempts(TEXTS, REWARDS, told, config)] == SILENT
    assert [each.feedback for each in attempts(TEXTS, [0.0] * 4, told, config)] == ["bad", None, None, "worse"]


def test_where_feedback_comes_from():
    row = {"columns": {"privileged_context": "for all"}}
    assert feedback_of(row, None, 2) == ["for all"] * 2
    assert feedback_of(row, [None, 3], 2) == [None, "3"]  # what was said of each comes first
    assert feedback_of({"columns": {}}, None, 2) == [None, None]


def asked(prompt: Any, **fields: Any) -> Any:
    config = SDPOConfig(include_environment_feedback=True, **fields)
    return [reprompt(prompt, each, config) for each in attempts(["a {b}", "c"], [1.0, 0.0], [None, "no {x}"], config)]


def test_reprompts():
    first, second = asked("why {y}?")
    assert first is None
    assert (
        second == "why {y}?\nCorrect solution:\n\na {b}\n\n\nThe following is feedback from your unsuccessful earlier"
        " attempt:\n\nno {x}\n\n\n\nCorrectly solve the original question.\n"
    )
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "why?"}]
    template = {
        "reprompt_template": "{prompt}|{solution}|{feedback}",
        "solution_template": "S {successful_previous_attempt}",
    }
    assert asked(talk, **template)[1][:1] == talk[:1]
    assert asked(talk, **template)[1][1]["content"].startswith("why?|S a {b}|\nThe following")


def test_a_prompt_that_is_too_long_isnt_cut():
    tokenizer, row = tiny_tokenizer(), {"prompt": "why?", "columns": {"prompt": "why?"}}
    shown = attempts(["a", "b"], [1.0, 0.0], [None, None], SDPOConfig())
    assert teacher_ids(row, shown, tokenizer, SDPOConfig(max_reprompt_len=10))[0] is None
    assert isinstance(teacher_ids(row, shown, tokenizer, SDPOConfig(max_reprompt_len=10))[1], Drop)
    found = teacher_ids(row, shown, tokenizer, SDPOConfig())[1]
    assert tokenizer.decode(found) == reprompt("why?", shown[1], SDPOConfig())


# ---------------------------------------------------------------- beside TRL


def of_trl(config: SDPOConfig, prompts: list, completions: list[list[int]], rewards: list[float], told: list) -> Any:
    """What TRL's builder makes of completions, and its metrics. It is given a trainer of what it reads alone."""
    from trl.experimental.sdpo.sdpo_trainer import SuccessfulRolloutTeacherContextBuilder

    from ft_host.api import prompt_row

    tokenizer = tiny_tokenizer()
    wide = max(map(len, completions))
    ids = torch.tensor([each + [0] * (wide - len(each)) for each in completions])
    mask = torch.tensor([[1] * len(each) + [0] * (wide - len(each)) for each in completions])
    trainer = SimpleNamespace(
        args=config,
        model=SimpleNamespace(training=True),
        num_generations=config.num_generations,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            process_index=0,
            gather=lambda value: value,
            pad_across_processes=lambda value, dim, pad_index: value,
        ),
        _tokenizer=tokenizer,
        processing_class=tokenizer,
        _tokenize_prompts_untruncated=lambda texts: [
            prompt_row({"prompt": text}, tokenizer, config)["prompt_ids"] for text in texts
        ],
    )
    builder = SuccessfulRolloutTeacherContextBuilder(trainer)
    output = {"completion_ids": ids, "completion_mask": mask}
    made = builder.build(output, prompts, torch.tensor(rewards), feedbacks=told)
    kept = [
        row[: len(row) - wide][seen[: len(seen) - wide] > 0].tolist()
        for row, seen in zip(made["teacher_input_ids"], made["teacher_attention_mask"], strict=True)
    ]
    return kept, made["self_distillation_mask"].tolist(), builder.last_metrics


CASES = {
    "defaults": {},
    "itself": {"dont_reprompt_on_self_success": False},
    "feedback": {"include_environment_feedback": True},
    "feedback where there is no solution": {
        "include_environment_feedback": True,
        "environment_feedback_only_without_solution": True,
    },
    "feedback alone": {"include_environment_feedback": True, "use_successful_as_teacher": False},
    "a threshold": {"success_reward_threshold": 0.5},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chat", [False, True])
def test_reprompts_are_trls(name, chat, monkeypatch):
    monkeypatch.setattr("trl.experimental.sdpo.sdpo_trainer.gather_object", lambda value: value)
    monkeypatch.setattr("trl.experimental.sdpo.sdpo_trainer.logger", SimpleNamespace(warning_once=lambda text: None))
    config, tokenizer = SDPOConfig(num_generations=3, max_length=None, **CASES[name]), tiny_tokenizer()
    rewards = [0.0, 1.0, 1.0, 0.0, 0.5, 0.2, 1.0, 0.0, 0.0]
    texts = [f"answer {index}" for index in range(9)]
    completions = [tokenizer(text)["input_ids"] + [7] for text in texts]
    told = [None, "no", None, "bad", "bad", None, " ", "no", None]
    prompts = [f"question {index // 3}?" for index in range(9)]
    if chat:
        prompts = [[{"role": "system", "content": "s"}, {"role": "user", "content": text}] for text in prompts]
    theirs, mask, metrics = of_trl(config, prompts, completions, rewards, told)
    shown, earned, found = [], [], []
    for group in (slice(0, 3), slice(3, 6), slice(6, 9)):
        shown.append(attempts(texts[group], rewards[group], told[group], config))
        earned.append(rewards[group])
        row = {"prompt": prompts[group][0], "columns": {"prompt": prompts[group][0]}}
        found.append(teacher_ids(row, shown[-1], tokenizer, config))
    ours = [ids for group in found for ids in group]
    assert [float(ids is not None) for ids in ours] == mask
    for mine, other in zip(ours, theirs, strict=True):
        assert mine is None or mine == other
    said = metric_values(metrics_of(shown, earned, found, config))
    for metric, value in metrics.items():
        if metric in said:
            assert said[metric] == pytest.approx(value), metric
        else:
            assert not config.use_successful_as_teacher and "success" in metric


# ---------------------------------------------------------------- rows


def completion(size: int, reason: str = "stop") -> Completion:
    return Completion(token_ids=list(range(20, 20 + size)), logprobs=[-1.0] * size, finish_reason=reason)


def test_rows():
    prompt = {"group": 3, "prompt_ids": [1, 2]}
    only, both = SDPOConfig(), SDPOConfig(distillation_weight=0.5, mask_truncated_completions=True)
    taught = attempt_row(prompt, completion(3), 0.0, [9] * 7, only)
    assert (taught["teacher_prompt_ids"], taught["length"], taught["shared"]) == ([9] * 7, 10, 0)
    assert not any(attempt_row(prompt, completion(3), 0.0, None, only)["sampled"]), "nothing is learnt from it"
    assert all(attempt_row(prompt, completion(3), 0.0, None, both)["sampled"]), "its reward is"
    assert not any(attempt_row(prompt, completion(3, "length"), 0.0, [9], both)["sampled"])
    assert attempt_row(prompt, completion(3), 0.0, Drop("too long"), both)["teacher_prompt_ids"] == []


def test_batches():
    """The teacher's has those that are taught, in the student's order; what nothing is learnt from is in neither."""
    prompt, config = {"group": 0, "prompt_ids": [1, 2]}, SDPOConfig(distillation_weight=0.5)
    rows = [
        attempt_row(prompt, completion(2), 0.0, [9] * 5, config),
        attempt_row(prompt, completion(3), 1.0, None, config),
        attempt_row(prompt, completion(4), 0.0, [9] * 5, config),
    ]
    batch = ft_collate(rows, None, config)
    teacher = batch.linked["teacher"]
    assert batch.lengths == [2, 2, 3, 4] and teacher.lengths == [5, 2, 4]
    taught = batch.columns["taught"][batch.rows]
    assert torch.equal(batch.targets[taught], teacher.targets) and torch.equal(batch.rows[taught], teacher.rows)
    assert batch.counts == {"rows": 3, "trained": 3, "tokens": 9, "taught": 2, "taught_tokens": 6}
    alone = [attempt_row(prompt, completion(3), 1.0, None, SDPOConfig()), rows[2]]
    batch = ft_collate(alone, None, SDPOConfig())
    assert batch.lengths == [2, 4] and batch.rows.tolist() == [1] * 4 and batch.num_rows == 2
    empty = ft_collate([], None, config)
    assert not len(empty.targets) and not len(empty.linked["teacher"].targets)
