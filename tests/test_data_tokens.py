"""Rows to tokens and labels: the same as TRL's SFT makes of them, and right where it is not."""

import json
import logging

import pytest

from ft_host.batch import IGNORE
from ft_host.config import RunConfig
from ft_host.data import load_tokenizer, prompt_of, tokenize_row
from ft_host.data.tokens import _warned
from ft_host.errors import ConfigError, RowError
from ft_host.testing.tokenizers import chat_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = CHATML.replace(
    "{{ m.content }}<|im_end|>\n",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}"
    "{{ m.content }}<|im_end|>{% endif %}\n",
)
# A generation prompt that the finished conversation doesn't have, as of DeepSeek-R1.
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")

TALK = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "Five."}] * 2
TEXTS = ["The quick brown fox.", "", "  spaces \n\n", "It is 42.</s>", "naïve 漢字 🙂", "word " * 60]


def config_of(**fields):
    return RunConfig(**{"model": "m", "dataset": "d", **fields})


def tokens(row, tokenizer, completion_only=None, assistant_only=False, **fields):
    return tokenize_row(
        row, tokenizer, config_of(**fields), completion_only=completion_only, assistant_only=assistant_only
    )


def supervised(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE])


# ---------------------------------------------------------------- the same as TRL


ROWS = {
    "text": [{"text": text} for text in TEXTS],
    "prompt and completion": (
        [{"prompt": f"Q{n}: ", "completion": text} for n, text in enumerate(TEXTS)]
        + [{"prompt": "over the la", "completion": "zy dog"}]
    ),
    "messages": [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK[:3]}],
    "conversational completion": [
        {"prompt": TALK[:1], "completion": TALK[1:2]},
        {"prompt": TALK[:3], "completion": TALK[1:2]},
        {"prompt": TALK[:1], "completion": TALK[1:4]},
    ],
    "tokens": [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, -100]}, {"input_ids": [9, 8], "labels": [9, 8]}],
}
CASES = [
    ("text", CHATML, {}, {}),
    ("text", CHATML, {"adds_bos": True}, {}),
    ("text", CHATML, {}, {"max_length": 7}),
    ("prompt and completion", CHATML, {}, {}),
    ("prompt and completion", CHATML, {"adds_bos": True}, {"completion_only_loss": False}),
    ("prompt and completion", CHATML, {"adds_bos": True}, {"max_length": 9}),
    ("prompt and completion", CHATML, {}, {"max_length": 9, "truncation_mode": "keep_end"}),
    ("messages", CHATML, {}, {}),
    ("messages", CHATML, {"adds_bos": True}, {}),
    ("messages", MARKED, {}, {"assistant_only_loss": True}),
    ("messages", MARKED, {}, {"assistant_only_loss": True, "max_length": 20}),
    ("conversational completion", CHATML, {}, {}),
    ("conversational completion", THINKING, {}, {}),
    ("conversational completion", MARKED, {}, {"assistant_only_loss": True}),
    ("conversational completion", MARKED, {}, {"assistant_only_loss": True, "completion_only_loss": False}),
    ("tokens", CHATML, {}, {"max_length": 3}),
]


@pytest.mark.parametrize("kind, template, made, fields", CASES)
def test_the_same_tokens_and_labels_as_trl(tmp_path, kind, template, made, fields):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from ft_host.testing.models import tiny_llama

    tokenizer = chat_tokenizer(template, **made)
    trainer = SFTTrainer(
        model=tiny_llama(vocab_size=len(tokenizer)),
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **{"max_length": None, **fields}),
        train_dataset=Dataset.from_list(ROWS[kind]),
        processing_class=tokenizer,
    )
    theirs = [{key: list(row[key]) for key in ("input_ids", "labels")} for row in trainer.train_dataset]
    limits = {key: fields[key] for key in ("max_length", "truncation_mode") if key in fields}
    ours = [
        tokens(
            row,
            tokenizer,
            fields.get("completion_only_loss"),
            fields.get("assistant_only_loss", False),
            **{"max_length": None, **limits},
        )
        for row in ROWS[kind]
    ]
    ours = [{key: row[key] for key in ("input_ids", "labels")} for row in ours]
    # TRL takes a sequence out when nothing of it is supervised; ft_prepare does so, with its reason.
    assert theirs == [row for row in ours if set(row["labels"]) != {IGNORE}]
    assert len(theirs) > 0


# ---------------------------------------------------------------- right where TRL isn't


def test_one_bos_and_one_eos_where_text_and_tokenizer_both_have_them():
    tokenizer = chat_tokenizer(adds_bos=True, adds_eos=True)
    for text in ("The dog", "<s>The dog", "The dog</s>", "<s>The dog</s>"):
        ids = tokens({"text": text}, tokenizer)["input_ids"]
        assert tokenizer.decode(ids) == "<s>The dog</s>", text
    row = tokens({"prompt": "<s>The", "completion": " dog"}, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == "<s>The dog</s>"
    assert supervised(row, tokenizer) == " dog</s>"


def test_bos_of_a_template_is_not_doubled():
    tokenizer = chat_tokenizer("{{ bos_token }}" + CHATML, adds_bos=True)
    for row in ({"messages": TALK}, {"prompt": TALK[:1], "completion": TALK[1:2]}):
        assert tokens(row, tokenizer)["input_ids"].count(tokenizer.bos_token_id) == 1
    assert prompt_of({"prompt": TALK[:1]}, tokenizer, config_of())[0].count(tokenizer.bos_token_id) == 1


def test_the_end_is_supervised_also_where_it_is_the_padding_token():
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    for row in ({"text": "a</s>b"}, {"prompt": "a", "completion": "b"}):
        labels = tokens(row, tokenizer)["labels"]
        assert labels[-1] == tokenizer.eos_token_id
    assert tokens({"text": "a</s>b"}, tokenizer)["labels"].count(tokenizer.eos_token_id) == 2


def test_completion_mask_of_rows_that_are_tokens_already():
    tokenizer = chat_tokenizer()
    row = {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}
    assert tokens(row, tokenizer)["labels"] == [-100, 6, -100]
    assert tokens(row, tokenizer, completion_only=False)["labels"] == [5, 6, -100]
    assert tokens({"input_ids": [5, 6]}, tokenizer)["labels"] == [5, 6]


@pytest.mark.parametrize(
    "row, said",
    [
        ({"input_ids": [5, 10_000]}, r"input_ids\[1\]: found 10000, expected a token id from 0 to \d+"),
        ({"input_ids": [5, "a"]}, r"input_ids\[1\]: found 'a'"),
        ({"input_ids": [5, 6], "labels": [5]}, "column labels: 1 values for 2 input_ids"),
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "found labels shifted by one token"),
        ({"input_ids": [5, 6, 7], "labels": [5, 6, -1]}, r"labels\[2\]: found -1, expected a token id or -100"),
    ],
)
def test_wrong_tokens_are_refused(row, said):
    with pytest.raises(RowError, match=said):
        tokens(row, chat_tokenizer())


def test_what_only_some_rows_can_have_is_refused_for_others():
    tokenizer = chat_tokenizer(CHATML)
    for row in ({"text": "a"}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(RowError, match="assistant_only_loss needs conversations"):
            tokens(row, tokenizer, assistant_only=True)
    for row in ({"text": "a"}, {"messages": TALK}):
        with pytest.raises(RowError, match="completion_only_loss needs a prompt and a completion"):
            tokens(row, tokenizer, completion_only=True)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token: the tokenizer has none"):
        tokens({"text": "a"}, tokenizer)


def test_cutting():
    tokenizer = chat_tokenizer()
    whole = tokens({"prompt": "The quick brown ", "completion": "fox jumps"}, tokenizer)
    assert whole["length"] == len(whole["input_ids"]) and not whole["truncated"]
    start = tokens({"prompt": "The quick brown ", "completion": "fox jumps"}, tokenizer, max_length=4)
    end = tokens(
        {"prompt": "The quick brown ", "completion": "fox jumps"}, tokenizer, max_length=4, truncation_mode="keep_end"
    )
    for cut, part in ((start, slice(4)), (end, slice(-4, None))):
        assert cut["truncated"] and cut["length"] == 4
        assert cut["input_ids"] == whole["input_ids"][part] and cut["labels"] == whole["labels"][part]
    for strategy, length in (("bfd", 4), ("bfd_split", whole["length"]), ("wrapped", whole["length"])):
        row = {"prompt": "The quick brown ", "completion": "fox jumps"}
        assert tokens(row, tokenizer, max_length=4, packing=True, packing_strategy=strategy)["length"] == length


def test_a_prompt_that_looks_different_alone_is_said_once(caplog):
    tokenizer = chat_tokenizer(THINKING)
    _warned.clear()
    with caplog.at_level(logging.WARNING):
        row = tokens({"prompt": TALK[:1], "completion": TALK[1:2]}, tokenizer)
        tokens({"prompt": TALK[:1], "completion": TALK[1:2]}, tokenizer)
    assert supervised(row, tokenizer) == "Five.<|im_end|>\n"
    assert len(caplog.records) == 1 and "they differ from '<think>\\n'" in caplog.text


def test_prompt_and_completion_of_a_row_are_what_a_generation_sees():
    for template in (CHATML, MARKED):
        tokenizer = chat_tokenizer(template, adds_bos=True)
        for row in (
            {"prompt": "The quick", "completion": " fox"},
            {"prompt": TALK[:1], "completion": TALK[1:2]},
            {"prompt": TALK[:3], "completion": TALK[1:2]},
        ):
            made = tokens(row, tokenizer)
            ids, prompt = prompt_of(row, tokenizer, config_of())
            assert prompt == row["prompt"]
            assert made["input_ids"][: len(ids)] == ids
            assert [label != IGNORE for label in made["labels"]] == [at >= len(ids) for at in range(made["length"])]
    ids, prompt = prompt_of({"messages": TALK}, tokenizer, config_of())
    assert prompt == TALK[:3] and tokenizer.decode(ids).endswith("2+3?<|im_end|><|im_start|>assistant\n")


def test_prompts_of_other_rows():
    tokenizer = chat_tokenizer(CHATML, adds_bos=True, adds_eos=True)
    assert tokenizer.decode(prompt_of({"prompt": "The"}, tokenizer, config_of())[0]) == "<s>The"
    row = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}
    assert prompt_of(row, tokenizer, config_of())[0] == [5, 6]
    with pytest.raises(RowError, match="there is no prompt"):
        prompt_of({"input_ids": [5, 6]}, tokenizer, config_of())


# ---------------------------------------------------------------- the tokenizer of a run


def test_loading_a_tokenizer(tmp_path):
    chat_tokenizer(CHATML).save_pretrained(tmp_path / "m")
    chat_tokenizer(MARKED).save_pretrained(tmp_path / "other")
    (tmp_path / "t.jinja").write_text(THINKING)
    model = str(tmp_path / "m")
    assert load_tokenizer(config_of(model=model)).chat_template == CHATML
    for place, template in (("t.jinja", THINKING), ("other", MARKED)):
        config = config_of(model=model, chat_template_path=str(tmp_path / place))
        assert load_tokenizer(config).chat_template == template
    assert load_tokenizer(config_of(model=model, eos_token="<|im_end|>")).eos_token == "<|im_end|>"
    with pytest.raises(ConfigError, match=r"eos_token: '<\|im_and\|>' is not a token of .*did you mean <\|im_end\|>"):
        load_tokenizer(config_of(model=model, eos_token="<|im_and|>"))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"chat template of .*t\.jinja, line 2: unexpected '}'"):
        load_tokenizer(config_of(model=model, chat_template_path=str(tmp_path / "t.jinja")))
    with pytest.raises(ConfigError, match="chat_template_path: .*no such file"):
        load_tokenizer(config_of(model=model, chat_template_path=str(tmp_path / "u.jinja")))


def test_a_tokenizer_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(
        ConfigError, match=r"model: .*has no tokenizer \(tokenizer.json or the like\), only config.json"
    ):
        load_tokenizer(config_of(model=str(tmp_path)))
