"""What can be known wrong of a config or of rows is refused by name, before a model is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from ft_sdft.config import SDFTConfig
from ft_sdft.method import ft_models, ft_prepare, teacher_prompt, text_of_context

from ft_host.api import ConfigError, DataError, Drop, ModelSpec, RowError, UsageError
from ft_host.testing import run_in, tiny_tokenizer

OWN = (
    "steps_per_generation",
    "generation_batch_size",
    "num_iterations",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "disable_dropout",
    "distillation_alpha",
    "distillation_mode",
    "distillation_topk",
    "distillation_is_clip",
    "distillation_add_tail",
    "num_loss_tokens_to_skip",
    "teacher_model_kind",
    "teacher_update_rate",
    "teacher_sync_steps",
    "generate_from_teacher",
    "teacher_prompt_template",
)


def test_defaults_are_trls():
    """But for one completion of a prompt rather than eight, and a lower learning rate; the fields say why."""
    from trl.experimental.sdft import SDFTConfig as Theirs

    theirs = {field.name: field.default for field in dataclasses.fields(Theirs)}
    assert {name: getattr(SDFTConfig(), name) for name in OWN} == {name: theirs[name] for name in OWN}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"teacher_prompt_template": "{prompt}"},
            r"teacher_prompt_template: has no slot {privileged_context}; expected",
        ),
        ({"teacher_prompt_template": "{privileged_context}"}, "has no slot {prompt}"),
        (
            {"teacher_prompt_template": "{prompt} {privileged_context} {more}"},
            "has the slot {more}, expected {prompt} and",
        ),
        ({"teacher_prompt_template": "{prompt} {privileged_context} {}"}, "has the slot {}"),
        ({"teacher_prompt_template": "{prompt} {privileged_context!r}"}, "has the slot {privileged_context}"),
        ({"teacher_prompt_template": "{prompt} {privileged_context} }"}, "a brace that is text is written twice"),
        ({"distillation_mode": "sampled_token"}, "distillation_alpha: 0.5 with distillation_mode sampled_token"),
        (
            {"distillation_mode": "full_logits", "distillation_topk": 5},
            "distillation_topk: has no effect on full_logits",
        ),
        ({"distillation_mode": "full_logits", "distillation_add_tail": True}, "distillation_add_tail: has no effect"),
        (
            {"teacher_update_rate": 0.1},
            "teacher_update_rate: has no effect on a teacher_model_kind of base, only on ema",
        ),
        ({"teacher_sync_steps": 3, "teacher_model_kind": "live"}, "teacher_sync_steps: has no effect"),
        ({"distillation_is_clip": 3.0}, "distillation_is_clip: has no effect where each rollout is used for one"),
        ({"distillation_is_clip": None}, "distillation_is_clip: has no effect"),
        (
            {"distillation_is_clip": 3.0, "num_iterations": 2, "generate_from_teacher": True},
            "distillation_is_clip: has no effect with generate_from_teacher",
        ),
        ({"num_loss_tokens_to_skip": 512}, "num_loss_tokens_to_skip: 512 leaves nothing"),
        ({"reward_weights": [1.0]}, "reward_weights: "),
        ({"tools": ["a.py:b"]}, "tools: the teacher is asked before"),
        ({"environment": "a.py:B"}, "environment: the teacher is asked before"),
        ({"num_generations": 3}, "num_generations: .*groups of 3"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        SDFTConfig(**fields).check()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distillation_mode": "sampled_token", "distillation_alpha": 1.0},
        {"distillation_mode": "full_logits"},
        {"distillation_is_clip": None, "num_iterations": 2},
        {"teacher_model_kind": "ema", "teacher_update_rate": 1.0},
        {"teacher_prompt_template": "{{}} {privileged_context}{prompt}{prompt}"},
        {"generate_from_teacher": True},
    ],
)
def test_accepted(fields):
    SDFTConfig(**fields).check()


def test_an_unknown_mode_is_refused():
    from ft_host.testing import resolve

    with pytest.raises(ConfigError, match="distillation-mode"):
        resolve(SDFTConfig, None, ["--model", "m", "--dataset", "d", "--distillation-mode", "topk"])


def test_the_models_that_are_asked_for():
    assert ft_models(SDFTConfig()) == {"teacher": ModelSpec()}
    assert ft_models(SDFTConfig(teacher_model_kind="live")) == {"teacher": ModelSpec(current_policy=True)}
    ema = SDFTConfig(teacher_model_kind="ema", teacher_sync_steps=3)
    assert ft_models(ema) == {"teacher": ModelSpec(sync_steps=3, sync_alpha=0.05)}


# ---------------------------------------------------------------- rows


def test_prompts_of_texts():
    config = SDFTConfig(teacher_prompt_template="{privileged_context} | {prompt}")
    tokenizer = tiny_tokenizer()
    found = ft_prepare({"prompt": "a {b}", "privileged_context": "c {d}"}, tokenizer, config)
    assert tokenizer.decode(found["prompt_ids"]) == "a {b}"
    assert tokenizer.decode(found["teacher_prompt_ids"]) == "c {d} | a {b}"
    assert found["length"] == len(found["teacher_prompt_ids"]) and found["shown"]


def test_prompts_of_conversations():
    """The last message is replaced; what comes before stays. As in TRL."""
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    config = SDFTConfig()
    assert teacher_prompt(talk, "so", config) == [talk[0], {"role": "user", "content": "why?\n\nso"}]
    tokenizer = tiny_tokenizer()
    found = ft_prepare({"prompt": talk, "privileged_context": "so"}, tokenizer, config)
    assert tokenizer.decode(found["teacher_prompt_ids"]) == tokenizer.apply_chat_template(
        [talk[0], {"role": "user", "content": "why?\n\nso"}], tokenize=False, add_generation_prompt=True
    )


def test_contexts_are_trls():
    from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder

    theirs = DemonstrationTeacherContextBuilder(None)._stringify_privileged_context
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ]
    for context in ("text", messages, 12):
        assert text_of_context(context) == theirs(context)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a", "privileged_context": None},
            "column privileged_context: found nothing, expected text or messages",
        ),
        ({"prompt": "a", "privileged_context": {"x": 1}}, "column privileged_context: found dict"),
        ({"prompt": "a", "privileged_context": []}, "column privileged_context: found list"),
        (
            {"prompt": [{"role": "assistant", "content": "a"}], "privileged_context": "b"},
            "ends with a message of 'assistant'",
        ),
    ],
)
def test_refused_rows(row, said):
    with pytest.raises(RowError, match=said):
        ft_prepare(row, tiny_tokenizer(), SDFTConfig())


def test_long_prompts_are_left_out():
    config = SDFTConfig(max_length=8)
    long = "x " * 9
    assert ft_prepare({"prompt": long, "privileged_context": "b"}, tiny_tokenizer(), config) == Drop(
        "the prompt is longer than max_length"
    )
    assert ft_prepare({"prompt": "a", "privileged_context": long}, tiny_tokenizer(), config) == Drop(
        "the teacher's prompt is longer than max_length"
    )


def test_a_missing_column_is_named_before_a_model_is_loaded(make, no_model):
    with pytest.raises(DataError, match="no column privileged_context, only prompt, privileged_contxt; did you mean"):
        run_in(make([{"prompt": "a", "privileged_contxt": "b"}] * 8), "run")


def test_an_empty_one_names_its_line(make, no_model):
    rows = [{"prompt": "a", "privileged_context": "b"}, {"prompt": "a", "privileged_context": None}]
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: column privileged_context"):
        run_in(make(rows), "run")


def test_a_later_row_without_it(make, rows):
    """Rows of a file may have other columns; beyond the first ones that is only seen when its turn comes."""
    with pytest.raises(UsageError, match="a row has no privileged_context: that of the prompt 'odd one'"):
        run_in(make([*rows[:3], {"prompt": "odd one"}, *rows[4:]]), "run")


def test_held_out_rows_need_none(make, rows, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows[:4]), encoding="utf-8")
    folder = run_in(make(rows, max_steps=2, eval_dataset=str(held_out), eval_steps=1), "run")
    found = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(line["kind"] == "eval" and line["eval_completions/mean_length"] > 0 for line in found) == 2
