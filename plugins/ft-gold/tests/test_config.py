"""What can be known wrong of a config, a teacher or rows is refused by name, before a model is loaded."""

from __future__ import annotations

import dataclasses

import pytest
from ft_gold import method
from ft_gold.config import GOLDConfig

from ft_host.api import ConfigError, DataError, Drop, RowError
from ft_host.testing import other_tokenizer, run_in, save_tiny, tiny_llama, tiny_tokenizer


def test_defaults_are_trls():
    """But for what the README tells of."""
    from trl.experimental.gold import GOLDConfig as Theirs

    theirs = {field.name: field.default for field in dataclasses.fields(Theirs)}
    names = (
        "beta",
        "lmbda",
        "seq_kd",
        "disable_dropout",
        "use_extended_uld",
        "uld_hybrid_matched_weight",
        "uld_hybrid_unmatched_weight",
        "uld_crossentropy_weight",
        "uld_distillation_weight",
    )
    assert {name: getattr(GOLDConfig(), name) for name in names} == {name: theirs[name] for name in names}
    others = {
        "uld_use_hybrid_loss": (True, False),
        "uld_skip_student_eos": (False, True),
        "learning_rate": (2e-5, 1e-7),
        "uld_token_merge_strategy": ("text", "observed"),
    }
    for name, both in others.items():
        assert (getattr(GOLDConfig(), name), theirs[name]) == both


def test_trls_names_are_taken():
    from ft_host.testing import resolve

    given = ["--model", "m", "--dataset", "d", "--teacher-model-name-or-path", "t", "--max-new-tokens", "9"]
    config = resolve(GOLDConfig, None, given).config
    assert (config.teacher_model_name_or_path, config.max_completion_length) == ("t", 9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"teacher_model_name_or_path": "m"}, "teacher_model_name_or_path: is the trained model itself"),
        ({"seq_kd": True, "lmbda": 1.0}, "seq_kd: has no effect with lmbda: 1"),
        ({"lmbda": 0.0, "reward": ["accuracy"]}, "reward: has no effect with lmbda: 0"),
        ({"reward_weights": [1.0]}, "reward_weights: "),
        ({"tools": ["a.py:b"]}, "tools: gold completes prompts in one turn; distill is for"),
        (
            {"use_uld_loss": False, "uld_crossentropy_weight": 1.0},
            "uld_crossentropy_weight: has no effect with use_uld_loss",
        ),
        (
            {"use_extended_uld": False, "uld_token_merge_strategy": "bayesian"},
            "uld_token_merge_strategy: has no effect with ",
        ),
        ({"uld_use_hybrid_loss": False, "uld_hybrid_matched_weight": 1.0}, "uld_hybrid_matched_weight: has no effect"),
        (
            {"use_uld_loss": True, "uld_use_hybrid_loss": False, "beta": 0.1},
            "beta: has no effect with use_uld_loss: true and",
        ),
        (
            {"uld_hybrid_matched_weight": 1.0},
            "uld_hybrid_matched_weight, uld_hybrid_unmatched_weight: set both or none",
        ),
        ({"uld_hybrid_matched_weight": 0.0, "uld_hybrid_unmatched_weight": 0.0}, "both are 0"),
        ({"uld_skip_teacher_eos": True}, "uld_skip_student_eos, uld_skip_teacher_eos: an end without a partner"),
        ({"uld_crossentropy_weight": 0.5, "lmbda": 1.0}, "uld_crossentropy_weight: has no effect with lmbda: 1"),
        ({"uld_distillation_weight": 0.0}, "uld_distillation_weight: with 0 nothing is learnt from the teacher; ft-s"),
    ],
)
def test_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        GOLDConfig(model="m", **fields).check()


def test_a_revision_of_a_folder_is_refused(teacher):
    with pytest.raises(ConfigError, match="teacher_model_revision: has no effect on a folder"):
        GOLDConfig(teacher_model_name_or_path=str(teacher), teacher_model_revision="v2").check()


def test_a_teacher_is_asked_for():
    from ft_host.testing import resolve

    with pytest.raises(ConfigError, match="teacher"):
        resolve(GOLDConfig, None, ["--model", "m", "--dataset", "d"])


@pytest.mark.parametrize(
    "fields", [{}, {"lmbda": 0.0}, {"lmbda": 1.0}, {"seq_kd": True}, {"seq_kd": True, "lmbda": 0.0}]
)
def test_accepted(fields):
    GOLDConfig(**fields).check()


def test_the_teacher_that_is_asked_for():
    fields = {"teacher_model_name_or_path": "a/b", "teacher_model_revision": "v2"}
    spec = method.ft_models(GOLDConfig(**fields))["teacher"]
    assert (spec.source, spec.revision, spec.field, spec.own_tokenizer) == (
        "a/b",
        "v2",
        "teacher_model_name_or_path",
        True,
    )
    assert not method.ft_models(GOLDConfig(**fields, use_uld_loss=False))["teacher"].own_tokenizer


# ---------------------------------------------------------------- teachers


def test_another_vocabulary_compared_token_by_token(make, chats, no_model):
    with pytest.raises(ConfigError, match=r"has a vocabulary of 200 tokens, .* one of 256.*leave use_uld_loss out"):
        run_in(make(chats, use_uld_loss=False), "run")


def test_nothing_to_do_for_a_field(make, chats, relative, no_model):
    fields = {"teacher_model_name_or_path": str(relative), "uld_token_merge_strategy": "bayesian"}
    with pytest.raises(
        ConfigError, match="uld_token_merge_strategy: has no effect on a teacher with the student's tokens"
    ):
        run_in(make(chats, **fields), "run")


def test_a_divergence_that_nothing_is_compared_by(make, chats, no_model):
    """With other tokens, which only a look at the teacher's tokenizer shows."""
    with pytest.raises(ConfigError, match="beta: has no effect with uld_use_hybrid_loss: false, where all is sorted"):
        run_in(make(chats, uld_use_hybrid_loss=False, beta=0.1), "run")


def test_a_teacher_that_is_not_there(make, chats, tmp_path, no_model):
    with pytest.raises(
        ConfigError, match="teacher_model_name_or_path: .*/techer: no such file or folder; did you mean"
    ):
        (tmp_path / "teacher").mkdir()
        run_in(make(chats, teacher_model_name_or_path=str(tmp_path / "techer")), "run")


def test_a_teacher_without_weights(make, chats, tmp_path, no_model):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: .* holds no weights"):
        run_in(make(chats, teacher_model_name_or_path=str(tmp_path / "teacher")), "run")


def test_a_teacher_without_a_tokenizer(make, chats, tmp_path, no_model):
    place = save_tiny(tmp_path / "bare", tiny_llama())
    for file in place.glob("token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: .*bare has no tokenizer"):
        run_in(make(chats, teacher_model_name_or_path=str(place)), "run")


@pytest.mark.parametrize("fields", [{"lmbda": 1.0}, {}])
def test_a_teacher_whose_tokens_cant_be_told_apart(make, chats, tmp_path, no_model, fields):
    """Whether or not the data has completions that would show it."""
    from tokenizers import decoders

    lossy = other_tokenizer()
    lossy.backend_tokenizer.decoder = decoders.WordPiece()
    place = save_tiny(tmp_path / "lossy", tiny_llama(vocab_size=200), lossy)
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: a tokenizer that decodes by WordPiece"):
        run_in(make(chats, teacher_model_name_or_path=str(place), **fields), "run")


def test_a_teacher_without_a_template(make, chats, tmp_path, no_model):
    place = save_tiny(tmp_path / "plain", tiny_llama(vocab_size=200), other_tokenizer(template=None))
    with pytest.raises(DataError, match=r"line 1: .*the tokenizer has no chat template"):
        run_in(make(chats, teacher_model_name_or_path=str(place)), "run")


# ---------------------------------------------------------------- rows

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def prepared(teacher):
    def made(row, **fields):
        return method.ft_prepare(row, TOKENIZER, GOLDConfig(teacher_model_name_or_path=str(teacher), **fields))

    return made


def texts(row: dict, tokenizer=TOKENIZER, which: str = "") -> tuple[str, str]:
    return tokenizer.decode(row[f"{which}prompt_ids"]), tokenizer.decode(row[f"{which}completion_ids"])


def test_texts(prepared):
    found = prepared({"prompt": "a b?", "completion": " c d"})
    assert texts(found["own"]) == ("a b?", f" c d{TOKENIZER.eos_token}")
    assert texts(found["own"], other_tokenizer(), "teacher_") == ("a b?", " c d<|end|>")
    assert (
        found["length"]
        == found["own"]["length"]
        >= len(found["own"]["prompt_ids"]) + len(found["own"]["completion_ids"])
    )
    assert all(found["own"]["sampled"]) and not found["own"]["on_policy"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations(prepared, column, tmp_path):
    """The teacher reads them as its own template has them."""
    keys = {"messages": ("role", "content", "user", "assistant"), "conversations": ("from", "value", "human", "gpt")}
    role, content, user, assistant = keys[column]
    row = {column: [{role: user, content: "why?"}, {role: assistant, content: "so"}]}
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    other = other_tokenizer(eos_token="</s>", template=template)
    place = save_tiny(tmp_path / "other", tiny_llama(vocab_size=200), other)
    found = prepared(row) if column == "messages" else None
    if found is not None:
        assert texts(found["own"]) == ("<|user|>why?<|end|><|assistant|>", "so<|end|>")
    found = method.ft_prepare(row, TOKENIZER, GOLDConfig(teacher_model_name_or_path=str(place)))
    assert texts(found["own"], other, "teacher_") == ("[user] why?</s>[assistant] ", "so</s>")
    assert found["own"]["units"][-1] == [1, 1] and found["own"]["teacher_sampled"][-1]


def test_long_completions_are_cut(prepared):
    found = prepared({"prompt": "a b?", "completion": "c " * 30}, max_completion_length=5)
    assert len(found["own"]["completion_ids"]) == 5
    assert not found["own"]["teacher_completion_ids"][-1] == other_tokenizer().eos_token_id


def test_long_prompts_are_left_out(prepared):
    row = {"prompt": "x " * 20, "completion": "y"}
    assert prepared(row, max_length=8) == Drop("the prompt is longer than max_length")
    long = {"prompt": "question", "completion": "y"}  # a token of the student's, and several of the teacher's
    mine, others = len(TOKENIZER.encode("question")), len(other_tokenizer().encode("question"))
    assert mine < others
    assert prepared(long, max_length=mine) == Drop("the prompt as the teacher reads it is longer than max_length")


def test_a_token_of_both_prompt_and_completion(prepared):
    """`th` and `e`: alone the prompt is other tokens than before its completion."""
    assert prepared({"prompt": "a th", "completion": "e"}) == Drop(
        "a token is of both the prompt and its completion, so that the teacher can't be asked from there"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "a"},
            "a prompt without a completion; with lmbda below 1 gold learns from completions of the data too",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages: found no assistant turn"),
        ({"text": "a"}, "plain text has no prompt"),
        (
            {"input_ids": [10, 11, 12], "labels": [-100, 11, 12]},
            "input_ids: tokens are the student's, and the teacher reads",
        ),
    ],
)
def test_refused_rows(prepared, row, said):
    with pytest.raises(RowError, match=said):
        prepared(row)


def test_an_empty_prompt_is_left_out(prepared):
    left_out = prepared({"prompt": "", "completion": "a"})
    assert isinstance(left_out, Drop) and left_out == "the prompt is empty"


@pytest.mark.parametrize("fields", [{"lmbda": 1.0}, {"seq_kd": True}])
def test_prompts_alone_are_enough_where_the_data_says_nothing(prepared, fields):
    assert "own" not in prepared({"prompt": "a"}, **fields)


def test_a_missing_completion_names_its_line(make, no_model):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: .*a prompt without a completion"):
        run_in(make(rows), "run")
