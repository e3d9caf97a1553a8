"""What can be known wrong of a config, a teacher or rows is refused by name, before a model is loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from ft_distill import distill, gkd
from ft_distill.config import DistillConfig, GKDConfig

from ft_host.api import ConfigError, DataError, Drop, RowError
from ft_host.testing import lines, run_in, save_tiny, tiny_llama, tiny_tokenizer


def test_defaults_of_distill_are_trls():
    """But for dropout, which the divergence from a policy with other dropout would be of."""
    from trl import DistillationConfig

    theirs = {field.name: field.default for field in dataclasses.fields(DistillationConfig)}
    names = ("learning_rate", "beta", "max_completion_length", "temperature", "top_p", "top_k", "repetition_penalty")
    assert {name: getattr(DistillConfig(), name) for name in names} == {name: theirs[name] for name in names}


def test_defaults_of_gkd_are_trls():
    """But for the temperature, which is in the loss too, and longer completions."""
    from trl.experimental.gkd import GKDConfig as Theirs

    theirs = {field.name: field.default for field in dataclasses.fields(Theirs)}
    names = ("learning_rate", "beta", "lmbda", "seq_kd", "disable_dropout")
    assert {name: getattr(GKDConfig(), name) for name in names} == {name: theirs[name] for name in names}


def test_trls_names_are_taken():
    from ft_host.testing import resolve

    given = ["--model", "m", "--dataset", "d", "--teacher-model-name-or-path", "t", "--max-new-tokens", "9"]
    config = resolve(GKDConfig, None, given).config
    assert (config.teacher_model_name_or_path, config.max_completion_length) == ("t", 9)


@pytest.mark.parametrize(
    ("config_class", "fields", "said"),
    [
        (
            DistillConfig,
            {"teacher_model_name_or_path": "m"},
            "teacher_model_name_or_path: is the model that is trained",
        ),
        (GKDConfig, {"teacher_model_name_or_path": "m"}, "teacher_model_name_or_path: is the model that is trained"),
        (DistillConfig, {"reward_weights": [1.0]}, "reward_weights: "),
        (DistillConfig, {"num_generations": 3}, "num_generations: .*groups of 3"),
        (GKDConfig, {"seq_kd": True, "lmbda": 1.0}, "seq_kd: has no effect with lmbda: 1"),
        (GKDConfig, {"lmbda": 0.0, "reward": ["accuracy"]}, "reward: has no effect with lmbda: 0"),
        (GKDConfig, {"lmbda": 0.0, "max_sampling_logp_difference": 1.0}, "max_sampling_logp_difference: has no effect"),
        (DistillConfig, {"loss_add_tail": False}, "loss_add_tail: has no effect without loss_top_k"),
        (
            DistillConfig,
            {"loss_top_k": 5, "teacher_model_name_or_path": "t"},
            "teacher_model_name_or_path: has no effect",
        ),
        (
            DistillConfig,
            {"loss_top_k": 5, "teacher_model_revision": "t"},
            "teacher_model_revision: has no effect with loss_top",
        ),
        (DistillConfig, {"loss_top_k": 5, "temperature": 0.5}, "temperature: 0.5 with loss_top_k"),
        (GKDConfig, {"loss_top_k": 5, "seq_kd": True}, "seq_kd: needs a teacher that the run holds"),
        (GKDConfig, {"tools": ["a.py:b"]}, "tools: gkd completes prompts in one turn; distill is for"),
        (GKDConfig, {"environment": "a.py:B"}, "environment: gkd completes prompts in one turn"),
    ],
)
def test_refused(config_class, fields, said):
    with pytest.raises(ConfigError, match=said):
        config_class(model="m", **fields).check()


def test_a_revision_of_a_folder_is_refused(teacher):
    with pytest.raises(ConfigError, match="teacher_model_revision: has no effect on a folder"):
        DistillConfig(teacher_model_name_or_path=str(teacher), teacher_model_revision="v2").check()


def test_a_teacher_is_asked_for():
    from ft_host.testing import resolve

    with pytest.raises(ConfigError, match="teacher"):
        resolve(DistillConfig, None, ["--model", "m", "--dataset", "d"])


def test_a_teacher_that_the_backend_serves_is_one():
    from ft_host.testing import resolve

    config = resolve(DistillConfig, None, ["--model", "m", "--dataset", "d", "--loss-top-k", "9"]).config
    assert distill.ft_models(config) is None and gkd.ft_models(GKDConfig(loss_top_k=9)) is None


@pytest.mark.parametrize(
    "fields", [{}, {"lmbda": 0.0}, {"lmbda": 1.0}, {"seq_kd": True}, {"seq_kd": True, "lmbda": 0.0}]
)
def test_accepted(fields):
    GKDConfig(**fields).check()


def test_the_teacher_that_is_asked_for():
    fields = {"teacher_model_name_or_path": "a/b", "teacher_model_revision": "v2"}
    for method, config in ((distill, DistillConfig(**fields)), (gkd, GKDConfig(**fields))):
        spec = method.ft_models(config)["teacher"]
        assert (spec.source, spec.revision, spec.field) == ("a/b", "v2", "teacher_model_name_or_path")


# ---------------------------------------------------------------- teachers


def test_a_revision_of_a_teacher_of_the_hub(make, chats, teacher, tmp_path, monkeypatch):
    """Of two in the cache, the run is taught by the one that is named; the newest is taken where none is."""
    from huggingface_hub import constants

    other = tiny_llama(hidden_size=96)
    with torch.no_grad():
        other.lm_head.weight.normal_(std=0.2)
    newest = save_tiny(tmp_path / "newest", other, tiny_tokenizer())
    kept = tmp_path / "hub" / "models--made--teacher"
    for name, folder, commit in (("main", newest, "a" * 40), ("v2", teacher, "b" * 40)):
        shutil.copytree(folder, kept / "snapshots" / commit)
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / name).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fields = {"lmbda": 0.0, "max_steps": 1, "max_completion_length": 200, "max_length": None}

    def loss(name, **more):
        return lines(run_in(make(GKDConfig, chats, **fields, **more), name))[0]["loss"]

    named = {"teacher_model_name_or_path": "made/teacher"}
    theirs = loss("newest", teacher_model_name_or_path=str(newest))
    assert loss("unnamed", **named) == theirs
    right = loss("folder", teacher_model_name_or_path=str(teacher))
    assert loss("named", **named, teacher_model_revision="v2") == right != theirs
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: made/teacher can't be loaded"):
        loss("unknown", **named, teacher_model_revision="v3")


@pytest.fixture(params=[DistillConfig, GKDConfig], ids=["distill", "gkd"])
def method(request):
    return request.param


def test_another_vocabulary(method, make, chats, tmp_path, no_model):
    """Pointing at the method that can make something of it."""
    save_tiny(tmp_path / "other", tiny_llama(vocab_size=200), tiny_tokenizer(200))
    said = (
        r"teacher_model_name_or_path: .*other has a vocabulary of 200 tokens, .* one of 256; both must read the same "
    )
    with pytest.raises(ConfigError, match=said + r"tokens; ft-gold .* is for a teacher with another tokenizer"):
        run_in(make(method, chats, teacher_model_name_or_path=str(tmp_path / "other")), "run")


def test_other_tokens(method, make, chats, tmp_path, no_model):
    place = save_tiny(tmp_path / "other", tiny_llama(), tiny_tokenizer())
    written = json.loads((place / "tokenizer.json").read_text())
    vocabulary = written["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (place / "tokenizer.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="another vocabulary than this run's tokenizer .*; ft-gold"):
        run_in(make(method, chats, teacher_model_name_or_path=str(place)), "run")


def test_a_teacher_that_is_not_there(method, make, chats, tmp_path, no_model):
    with pytest.raises(
        ConfigError, match="teacher_model_name_or_path: .*/techer: no such file or folder; did you mean"
    ):
        (tmp_path / "teacher").mkdir()
        run_in(make(method, chats, teacher_model_name_or_path=str(tmp_path / "techer")), "run")


def test_a_teacher_without_weights(method, make, chats, tmp_path, no_model):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: .* holds no weights"):
        run_in(make(method, chats, teacher_model_name_or_path=str(tmp_path / "teacher")), "run")


# ---------------------------------------------------------------- rows of gkd

TOKENIZER = tiny_tokenizer()


def texts(row: dict) -> tuple[str, str]:
    return TOKENIZER.decode(row["prompt_ids"]), TOKENIZER.decode(row["completion_ids"])


def test_texts():
    found = gkd.ft_prepare({"prompt": "a b?", "completion": " c d"}, TOKENIZER, GKDConfig())
    assert texts(found["own"]) == ("a b?", f" c d{TOKENIZER.eos_token}")
    assert TOKENIZER.decode(found["prompt_ids"]) == "a b?" and found["length"] == found["own"]["length"]
    assert all(found["own"]["sampled"]) and not found["own"]["on_policy"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations(column):
    """The last turn of the assistant is the completion, and what comes before it the prompt; as in TRL's."""
    keys = {"messages": ("role", "content", "user", "assistant"), "conversations": ("from", "value", "human", "gpt")}
    role, content, user, assistant = keys[column]
    turns = [(user, "why?"), (assistant, "so"), (user, "really?"), (assistant, "yes")]
    found = gkd.ft_prepare({column: [{role: who, content: said} for who, said in turns]}, TOKENIZER, GKDConfig())
    messages = [{"role": "user" if who == user else "assistant", "content": said} for who, said in turns]
    prompt = TOKENIZER.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert texts(found["own"])[0] == TOKENIZER.decode(found["prompt_ids"]) == prompt
    whole = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert "".join(texts(found["own"])) == whole


def test_long_completions_are_cut():
    found = gkd.ft_prepare({"prompt": "a b?", "completion": "c " * 30}, TOKENIZER, GKDConfig(max_completion_length=5))
    assert len(found["own"]["completion_ids"]) == len(found["own"]["sampled"]) == 5


def test_long_prompts_are_left_out():
    row = {"prompt": "x " * 20, "completion": "y"}
    assert gkd.ft_prepare(row, TOKENIZER, GKDConfig(max_length=8)) == Drop("the prompt is longer than max_length")
    assert not isinstance(gkd.ft_prepare(row | {"prompt": "x"}, TOKENIZER, GKDConfig(max_length=2)), Drop)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a"},
            "a prompt without a completion; with lmbda below 1 gkd learns from completions of the data too",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages: found no assistant turn"),
        ({"text": "a"}, "plain text has no prompt"),
    ],
)
def test_refused_rows(row, said):
    with pytest.raises(RowError, match=said):
        gkd.ft_prepare(row, TOKENIZER, GKDConfig())


def test_an_empty_prompt_is_left_out():
    left_out = gkd.ft_prepare({"prompt": "", "completion": "a"}, TOKENIZER, GKDConfig())
    assert isinstance(left_out, Drop) and left_out == "the prompt is empty"


@pytest.mark.parametrize("fields", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_prompts_alone_are_enough_where_the_data_says_nothing(fields):
    assert "own" not in gkd.ft_prepare({"prompt": "a"}, TOKENIZER, GKDConfig(**fields))


def test_a_missing_completion_names_its_line(make, no_model):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: .*a prompt without a completion"):
        run_in(make(GKDConfig, rows), "run")
