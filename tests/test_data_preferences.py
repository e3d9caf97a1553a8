"""Preference rows: the same tokens as TRL's DPO and KTO, right where it is not, and what is said of rows that fit
none."""

import logging

import pytest

from ft_host.config import RunConfig
from ft_host.data import fit_length, is_empty, preference_row, tokenize_completions, tokens, unpaired_rows
from ft_host.data.packing import pack
from ft_host.errors import ConfigError, RowError
from ft_host.testing.tokenizers import chat_tokenizer
from ft_host.types import Drop

CHATML = (
    "{% if tools %}<|im_start|>system\nTools:{% for t in tools %} {{ t.function.name }}{% endfor %}<|im_end|>\n{% endif"
    " %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<|call|>{{"
    " c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if"
    " think is defined %}{{ think }}{% endif %}{% endif %}"
)
# A generation prompt that the finished conversation doesn't have, as of DeepSeek-R1.
THINKING = CHATML.replace("assistant\n{% if think", "assistant\n<think>\n{% if think")

PAIR = ("chosen", "rejected")


def said(content, role="assistant", **more):
    return {"role": role, "content": content, **more}


ASK, GOOD, BAD = [said("What is 2+3?", "user")], [said("Five.")], [said("Six, no doubt.")]
SYSTEM = [said("You add.", "system")]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]
CALL = [said("", tool_calls=[{"type": "function", "function": {"name": "add", "arguments": {"a": "2"}}}])]


def pairs(row, tokenizer):
    found = preference_row(row, tokenizer)
    prompt, (chosen, rejected) = tokenize_completions(found, tokenizer, PAIR)
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def judged(row, tokenizer):
    out = []
    for found in unpaired_rows(row, tokenizer):
        prompt, (completion,) = tokenize_completions(found, tokenizer, ("completion",))
        out.append({"prompt_ids": prompt, "completion_ids": completion, "label": found["label"]})
    return out


# ---------------------------------------------------------------- the same as TRL


ROWS = {
    "texts": [
        {"prompt": "The quick ", "chosen": "brown fox", "rejected": "blue dog"},
        {"prompt": "over the la", "chosen": "zy dog", "rejected": "test"},  # tokens merge over the boundary
        {"prompt": "", "chosen": "naïve 漢字 🙂", "rejected": "done</s>"},
        {"prompt": "Q: ", "chosen": "same start, one", "rejected": "same start, two"},
    ],
    "whole texts": [
        {"chosen": "The quick brown fox", "rejected": "The quick blue dog"},
        {"chosen": "It is 42", "rejected": "It is  42"},
        {"chosen": "one is the beginning", "rejected": "one is the beginning of the other"},
        {"chosen": "the same", "rejected": "the same"},
        {"chosen": "nothing", "rejected": "in common"},
    ],
    "conversations": [
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
        {"prompt": SYSTEM + ASK + BAD + ASK, "chosen": GOOD, "rejected": BAD},
        {"prompt": ASK, "chosen": GOOD + ASK + BAD, "rejected": BAD + ASK + GOOD},
    ],
    "whole conversations": [
        {"chosen": ASK + GOOD, "rejected": ASK + BAD},
        {"chosen": SYSTEM + ASK + GOOD + ASK + GOOD, "rejected": SYSTEM + ASK + GOOD + ASK + BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + GOOD + ASK + BAD},
        {"chosen": ASK + GOOD, "rejected": ASK + GOOD},
    ],
    "tools": [
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "tools": TOOLS},
        {"prompt": SYSTEM + ASK, "chosen": CALL, "rejected": BAD, "tools": TOOLS},
    ],
    "template arguments": [
        {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "chat_template_kwargs": {"think": "Fi"}},
        {"prompt": ASK, "chosen": GOOD, "rejected": [said("Fine.")], "chat_template_kwargs": {"think": "Fi"}},
    ],
}
JUDGED = {
    "texts": [
        {"prompt": "The quick ", "completion": "brown fox", "label": True},
        {"prompt": "over the la", "completion": "zy dog", "label": False},
        {"prompt": "", "completion": "done</s>", "label": True},
    ],
    "conversations": [
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": SYSTEM + ASK, "completion": BAD, "label": False},
    ],
}
CASES = [
    ("texts", CHATML, {}),
    ("texts", CHATML, {"adds_bos": True}),
    ("whole texts", CHATML, {}),
    ("whole texts", CHATML, {"adds_bos": True}),
    ("conversations", CHATML, {}),
    ("conversations", "{{ bos_token }}" + CHATML, {}),
    ("conversations", THINKING, {}),
    ("whole conversations", CHATML, {}),
    ("tools", CHATML, {}),
    ("template arguments", CHATML, {}),
]


def dataset_of(rows):
    from datasets import Dataset

    if "tools" in rows[0]:  # Arrow would give every tool and message the keys of all others
        import json

        rows = [row | {"tools": json.dumps(row["tools"])} for row in rows]
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return {"output_dir": str(tmp_path_factory.mktemp("trl")), "report_to": "none", "use_cpu": True}


@pytest.mark.parametrize("kind, template, made", CASES)
def test_the_same_tokens_as_trls_dpo(arguments, kind, template, made):
    from trl import DPOConfig, DPOTrainer

    from ft_host.testing.models import tiny_llama

    tokenizer = chat_tokenizer(template, **made)
    trainer = DPOTrainer(
        model=tiny_llama(vocab_size=len(tokenizer)),
        ref_model=tiny_llama(vocab_size=len(tokenizer)),
        args=DPOConfig(**arguments),
        train_dataset=dataset_of(ROWS[kind]),
        processing_class=tokenizer,
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    theirs = [{name: list(row[name]) for name in names} for row in trainer.train_dataset]
    assert [pairs(row, tokenizer) for row in ROWS[kind]] == theirs
    assert all(row["chosen_ids"] and row["rejected_ids"] for row in theirs)


@pytest.mark.parametrize("kind, template, made", CASES)
def test_the_same_sequences_as_trls_reward_modelling(arguments, kind, template, made):
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from ft_host.testing.models import tiny_llama

    tokenizer = chat_tokenizer(template, **made)
    config = tiny_llama(vocab_size=len(tokenizer)).config
    config.num_labels = 1
    tokenizer.pad_token = tokenizer.eos_token
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config),
        args=RewardConfig(max_length=None, **arguments),
        train_dataset=dataset_of(ROWS[kind]),
        processing_class=tokenizer,
    )
    theirs = [[list(row["chosen_ids"]), list(row["rejected_ids"])] for row in trainer.train_dataset]
    ours = [pairs(row, tokenizer) for row in ROWS[kind]]
    assert [[row["prompt_ids"] + row["chosen_ids"], row["prompt_ids"] + row["rejected_ids"]] for row in ours] == theirs


@pytest.mark.parametrize(
    "rows, template",
    [
        (JUDGED["texts"], CHATML),
        (JUDGED["conversations"], CHATML),
        (JUDGED["conversations"], THINKING),
        (ROWS["texts"], CHATML),
        (ROWS["whole texts"], CHATML),
        (ROWS["whole conversations"], CHATML),
        (ROWS["tools"], CHATML),
    ],
)
def test_the_same_tokens_as_trls_kto(arguments, rows, template):
    from trl import KTOConfig, KTOTrainer

    from ft_host.testing.models import tiny_llama

    tokenizer = chat_tokenizer(template)
    trainer = KTOTrainer(
        model=tiny_llama(vocab_size=len(tokenizer)),
        ref_model=tiny_llama(vocab_size=len(tokenizer)),
        args=KTOConfig(**arguments, loss_type="apo_zero_unpaired"),
        train_dataset=dataset_of(rows),
        processing_class=tokenizer,
    )
    names = ("prompt_ids", "completion_ids")
    theirs = [{name: list(row[name]) for name in names} | {"label": row["label"]} for row in trainer.train_dataset]
    ours = [each for row in rows for each in judged(row, tokenizer)]
    assert sorted(theirs, key=str) == sorted(ours, key=str)  # pairs taken apart: TRL puts all chosen ones first


# ---------------------------------------------------------------- right where TRL isn't


def test_prompts_that_trl_finds_wrongly():
    from trl import extract_prompt

    tokenizer = chat_tokenizer()
    row = {"chosen": "a ", "rejected": "b"}  # nothing in common, and chosen[-1] is a space
    assert extract_prompt(row)["prompt"] == "a"
    found = preference_row(row, tokenizer)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("", "a ", "b")
    row = {"chosen": "", "rejected": "b"}
    with pytest.raises(UnboundLocalError):
        extract_prompt(row)
    found = preference_row(row, tokenizer)
    assert (found["prompt"], found["chosen"], found["rejected"]) == ("", "", "b")


def test_a_prompt_is_what_both_begin_with_and_nothing_is_lost():
    tokenizer = chat_tokenizer(CHATML)
    for chosen, rejected in (
        ("It is blue", "It is green"),
        ("a b", "a b c"),
        ("a b ", "a b"),
        ("x", "x"),
        (" a", " b"),
    ):
        found = preference_row({"chosen": chosen, "rejected": rejected}, tokenizer)
        assert found["implicit_prompt"] is True
        assert found["prompt"] + found["chosen"] == chosen and found["prompt"] + found["rejected"] == rejected
        assert found["chosen"] and found["rejected"]
    found = preference_row({"chosen": "It is blue", "rejected": "It is green"}, tokenizer)
    assert (found["prompt"], found["chosen"]) == ("It is", " blue")
    for chosen, rejected in ((ASK + GOOD, ASK + BAD), (ASK + GOOD, ASK + GOOD + ASK + BAD), (GOOD, BAD)):
        found = preference_row({"chosen": chosen, "rejected": rejected}, tokenizer)
        assert found["prompt"] + found["chosen"] == chosen and found["prompt"] + found["rejected"] == rejected
        assert found["prompt"] == (ASK if chosen[0] in ASK else [])
    # Keys that Arrow filled in are no difference.
    filled = [{**ASK[0], "tool_calls": None}, *GOOD]
    assert preference_row({"chosen": filled, "rejected": ASK + BAD}, tokenizer)["prompt"] == ASK


def test_without_a_prompt_all_of_a_conversation_is_completion():
    tokenizer = chat_tokenizer(CHATML)
    row = pairs({"chosen": GOOD, "rejected": BAD}, tokenizer)
    assert row["prompt_ids"] == []
    assert tokenizer.decode(row["chosen_ids"]) == "<|im_start|>assistant\nFive.<|im_end|>\n"


def test_one_bos_and_one_eos_where_text_and_tokenizer_both_have_them():
    tokenizer = chat_tokenizer(adds_bos=True, adds_eos=True)
    row = pairs({"prompt": "<s>The ", "chosen": "dog", "rejected": "fox</s>"}, tokenizer)
    assert tokenizer.decode(row["prompt_ids"] + row["chosen_ids"]) == "<s>The dog</s>"
    assert tokenizer.decode(row["prompt_ids"] + row["rejected_ids"]) == "<s>The fox</s>"
    (row,) = judged({"prompt": "The ", "completion": "dog", "label": True}, tokenizer)
    assert tokenizer.decode(row["prompt_ids"] + row["completion_ids"]) == "<s>The dog</s>"


def test_completions_that_repeat_the_conversation():
    tokenizer = chat_tokenizer(CHATML)
    expected = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
    whole = {"chosen": ASK + GOOD, "rejected": ASK + BAD}
    text = ASK[0]["content"]
    for prompt, is_implicit in ((text, True), (f" {text}\n", True), ("", True), (None, True), ([], True), (ASK, False)):
        found = preference_row({"prompt": prompt, **whole}, tokenizer)
        assert found == expected | {"implicit_prompt": is_implicit}, prompt
    with_system = {name: SYSTEM + whole[name] for name in PAIR}
    assert preference_row({"prompt": text, **with_system}, tokenizer)["prompt"] == SYSTEM + ASK
    # An explicit prompt stays the boundary, also where the completions have more in common.
    longer = {"chosen": ASK + GOOD + ASK + GOOD, "rejected": ASK + GOOD + ASK + BAD}
    found = preference_row({"prompt": ASK, **longer}, tokenizer)
    assert found["prompt"] == ASK and found["rejected"] == GOOD + ASK + BAD


# ---------------------------------------------------------------- formats


def test_what_stays_beside_a_pair():
    tokenizer = chat_tokenizer(CHATML)
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2, "tools": TOOLS, "score": 5}
    found = preference_row(row | {"chat_template_kwargs": {"think": "x"}}, tokenizer)
    assert found == {
        "prompt": "a",
        "chosen": "b",
        "rejected": "c",
        "margin": 2.0,
        "tools": TOOLS,
        "chat_template_kwargs": {"think": "x"},
        "implicit_prompt": False,
    }
    assert isinstance(found["margin"], float)
    assert "margin" not in preference_row(row | {"margin": None}, tokenizer)
    assert [each["tools"] for each in unpaired_rows(row, tokenizer)] == [TOOLS, TOOLS]
    assert all("margin" not in each for each in unpaired_rows(row, tokenizer))


def test_sharegpt_and_alpaca():
    tokenizer = chat_tokenizer(CHATML)
    expected = {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "implicit_prompt": False}
    text = ASK[0]["content"]
    row = {
        "conversations": [{"from": "human", "value": text}],
        "chosen": {"from": "gpt", "value": "Five."},
        "rejected": {"from": "gpt", "value": "Six, no doubt."},
    }
    assert preference_row(row, tokenizer) == expected
    assert preference_row(row | {"system": "You add."}, tokenizer)["prompt"] == SYSTEM + ASK
    talks = {name: [{"from": "human", "value": text}, row[name]] for name in PAIR}
    assert preference_row(talks, tokenizer) == expected | {"implicit_prompt": True}
    alpaca = {"instruction": "What is", "input": "2+3?", "chosen": "Five.", "rejected": "Six, no doubt."}
    found = preference_row(alpaca, tokenizer)
    assert found == expected | {"prompt": [said("What is\n\n2+3?", "user")]}
    plain = preference_row(alpaca, chat_tokenizer())
    assert plain["prompt"].endswith("### Input:\n2+3?\n\n### Response:\n") and plain["chosen"] == "Five."
    whole = {"instruction": "Add.", "chosen": "Add. 5", "rejected": "Add. 6"}
    assert preference_row(whole, tokenizer)["prompt"] == "Add."


def test_rows_that_are_tokens_already():
    tokenizer = chat_tokenizer()
    row = {"prompt_ids": [5, 6], "chosen_ids": [5, 6, 7], "rejected_ids": [8]}
    assert pairs(row, tokenizer) == row
    assert preference_row(row, tokenizer)["implicit_prompt"] is False
    row = {"chosen_ids": [5, 6, 7, 9], "rejected_ids": [5, 6, 8]}
    assert pairs(row, tokenizer) == {"prompt_ids": [5, 6], "chosen_ids": [7, 9], "rejected_ids": [8]}
    assert preference_row(row | {"prompt_ids": None}, tokenizer)["implicit_prompt"] is True
    for chosen, rejected in (([5, 6], [5, 6, 7]), ([5, 6], [5, 6])):  # neither loses its last token
        made = pairs({"chosen_ids": chosen, "rejected_ids": rejected}, tokenizer)
        assert made == {"prompt_ids": [5], "chosen_ids": [6], "rejected_ids": rejected[1:]}
    assert pairs({"chosen_ids": [], "rejected_ids": [5]}, tokenizer)["rejected_ids"] == [5]
    assert judged(row, tokenizer) == [
        {"prompt_ids": [5, 6], "completion_ids": [7, 9], "label": True},
        {"prompt_ids": [5, 6], "completion_ids": [8], "label": False},
    ]
    row = {"prompt_ids": [5], "completion_ids": [6], "label": False}
    assert judged(row, tokenizer) == [row]


def test_judged_completions():
    tokenizer = chat_tokenizer(CHATML)
    row = {"prompt": ASK, "completion": GOOD, "label": False, "tools": TOOLS}
    assert unpaired_rows(row | {"id": 4}, tokenizer) == [row]
    assert unpaired_rows(row | {"completion": GOOD[0]}, tokenizer) == [row]
    talk = {"messages": SYSTEM + ASK + GOOD, "label": True}
    assert unpaired_rows(talk, tokenizer) == [{"prompt": SYSTEM + ASK, "completion": GOOD, "label": True}]
    assert unpaired_rows({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, tokenizer) == [
        {"prompt": ASK, "completion": GOOD, "label": True},
        {"prompt": ASK, "completion": BAD, "label": False},
    ]
    # Columns of the other format that Arrow filled in don't make it a pair.
    assert unpaired_rows(row | {"chosen": None, "rejected": None}, tokenizer) == [row]


def test_empty_completions():
    assert is_empty("") and is_empty(" \n") and is_empty([]) and is_empty([said(""), said(" ")])
    assert is_empty([said([{"type": "text", "text": " "}])])
    assert not is_empty("a") and not is_empty(GOOD) and not is_empty(CALL) and not is_empty([5])
    tokenizer = chat_tokenizer(CHATML)
    for row in (
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"prompt": ASK, "chosen": [], "rejected": BAD},
        {"prompt": ASK, "chosen": ASK, "rejected": ASK + BAD},
    ):
        found = preference_row(row, tokenizer)
        assert is_empty(found["chosen"]) and not is_empty(found["rejected"])
    assert is_empty(unpaired_rows({"prompt": ASK, "completion": [], "label": True}, tokenizer)[0]["completion"])


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": "a", "chosen": GOOD, "rejected": BAD},
            (
                "column prompt: found str 'a', while chosen and rejected are "
                "lists of messages that don't begin with it; expected a prompt of messages, or whole conversations"
            ),
        ),
        (
            {"prompt": "a", "chosen": ASK + GOOD, "rejected": ASK + BAD},
            "column prompt: found str 'a', but the user "
            r"message that begins the conversations in chosen and rejected is str 'What is 2\+3\?'",
        ),
        (
            {"prompt": "a", "chosen": GOOD, "rejected": "b"},
            "column prompt: found str 'a', expected messages, as in the " r"other column \(chosen\)",
        ),
        (
            {"prompt": ASK, "chosen": "a", "rejected": "b"},
            r"column chosen: found str 'a', expected messages, as in the " r"other column \(prompt\)",
        ),
        ({"chosen": ASK + GOOD, "rejected": "b"}, r"column rejected: found str 'b', expected messages"),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, "expected messages, as in the other column"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "column chosen: found nothing, expected text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "column prompt: found int '3', expected text"),
        ({"chosen": [{"rol": "user"}], "rejected": BAD}, r"chosen\[0\]: has no role; rol may be meant as role"),
        ({"chosen": ["a"], "rejected": ["b"]}, "column chosen: found a list of texts, expected one text"),
        (
            {"prompt": "a", "chosen": "b", "rejected": ["c", "d"]},
            "column rejected: found a list of texts, expected one",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "2"},
            "column margin: found str '2', expected a num",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "column margin: found bool 'True'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "column margin: found float 'nan'"),
        (
            {"question": "a?", "chosen": "b", "rejected": "c"},
            "column question: looks like the prompt, which chosen and "
            r"rejected don't begin with; set dataset_columns to \{question: prompt\}, or to \{question: unused\}",
        ),
        ({"messages": ASK, "chosen": GOOD, "rejected": BAD}, r"column messages: looks like the prompt"),
        (
            {"prompt": "a", "better": "b", "worse": "c"},
            r"look like pairs: set dataset_columns to \{better: chosen, "
            r"worse: rejected\}; expected prompt, chosen and rejected",
        ),
        ({"chosen_input_ids": [1], "rejected_input_ids": [2]}, r"\{chosen_input_ids: chosen_ids, rejected_input_ids: "),
        (
            {"prompt": "a", "chosen": "b", "rejectd": "c"},
            "found the columns prompt, chosen, rejectd; rejectd may be meant as rejected; expected",
        ),
        ({"prompt": "a", "completion": "b", "label": True}, "good or bad, each by itself: use `ft-host train kto`"),
        (
            {"prompt": "a", "completion": "b"},
            "texts to imitate, without worse ones beside them: use `ft-host train sft`;",
        ),
        ({"messages": ASK + GOOD}, "found the columns messages; they look like texts to imitate"),
        ({"prompt": "a"}, "they look like prompts without completions; expected"),
        ({"image": "a"}, "images, which isn't supported yet"),
        ({"foo": 1}, "found the columns foo; expected prompt, chosen and rejected"),
        (
            {"chosen_ids": [5], "rejected_ids": [1_000_000]},
            r"rejected_ids\[0\]: found 1000000, expected a token id from",
        ),
        ({"chosen_ids": [5]}, "column rejected_ids: found nothing, expected a list of token ids"),
        (
            {"prompt_ids": "a", "chosen_ids": [5], "rejected_ids": [6]},
            "column prompt_ids: found str 'a', expected a li",
        ),
    ],
)
def test_pairs_that_are_none_are_refused(row, message):
    with pytest.raises(RowError, match=message):
        preference_row(row, chat_tokenizer(CHATML))


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": "a", "completion": "b", "label": 1},
            "column label: found int '1', expected true or false.*"
            r'datasets: map\(lambda row: \{"label": \{1: True, 0: False\}\[row\["label"\]\]\}\)$',
        ),
        ({"prompt": "a", "completion": "b", "label": 0}, r"column label: found int '0'.* \{1: True, 0: False\}"),
        (
            {"prompt": "a", "completion": "b", "label": "true"},
            "column label: found str 'true'.* {'true': True, 'false': F",
        ),
        (
            {"prompt": "a", "completion": "b", "label": None},
            "column label: found nothing, expected true or false; leave",
        ),
        (
            {"prompt": "a", "completion": "b"},
            "sft`, or add the column label, true for good ones and false for bad ones;",
        ),
        ({"prompt": "a", "response": "b", "label": True}, r"set dataset_columns to \{response: completion\}"),
        ({"question": "a", "completion": "b", "label": True}, r"set dataset_columns to \{question: prompt\}"),
        ({"prompt": "a", "completion": "b", "lable": True}, "; lable may be meant as label; expected prompt, comp"),
        ({"prompt": "a", "completion": GOOD, "label": True}, "column prompt: found str 'a', expected messages"),
        ({"prompt": "a", "completion": None, "label": True}, "column completion: found nothing, expected text"),
        (
            {"messages": GOOD + ASK, "label": True},
            "column messages: ends with a message of user, expected one of the as",
        ),
        ({"completion_ids": [5], "label": True}, "column prompt_ids: found nothing, expected token ids"),
        ({"prompt": "a", "chosen": "b", "label": True}, "expected prompt, completion and label"),
        ({"prompt": "a", "chosen": GOOD, "rejected": BAD}, "column prompt: found str 'a', while chosen and rejected"),
    ],
)
def test_judged_completions_that_are_none_are_refused(row, message):
    with pytest.raises(RowError, match=message):
        unpaired_rows(row, chat_tokenizer(CHATML))


def test_what_the_tokenizer_lacks():
    tokenizer = chat_tokenizer()
    with pytest.raises(RowError, match="the tokenizer has no chat template"):
        pairs({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos_token: the tokenizer has none"):
        pairs({"prompt": "a", "chosen": "b", "rejected": "c"}, tokenizer)


def test_a_prompt_that_looks_different_alone_is_said_once(caplog):
    tokenizer = chat_tokenizer(THINKING)
    tokens._warned.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            row = pairs({"prompt": ASK, "chosen": GOOD, "rejected": BAD}, tokenizer)
    assert tokenizer.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert len(caplog.records) == 1 and "they differ from '<think>\\n'" in caplog.text


# ---------------------------------------------------------------- length


def fitted(prompt, completions, limit, mode="keep_start"):
    config = RunConfig(model="m", dataset="d", max_length=limit, truncation_mode=mode)
    return fit_length(prompt, completions, config)


PROMPT, LONG, SHORT = [1, 2, 3, 4], [5, 6, 7], [8]


def test_what_fits_is_left_alone():
    for limit in (None, 7, 100):
        for mode in ("keep_start", "keep_end"):
            assert fitted(PROMPT, [LONG, SHORT], limit, mode) == (PROMPT, [LONG, SHORT], {})


def test_keeping_the_start_cuts_completions_at_their_end():
    assert fitted(PROMPT, [LONG, SHORT], 6) == (PROMPT, [[5, 6], SHORT], {0: 1})
    assert fitted(PROMPT, [LONG, LONG], 5) == (PROMPT, [[5], [5]], {0: 2, 1: 2})
    for limit in (4, 2):
        dropped = fitted(PROMPT, [LONG, SHORT], limit)
        assert isinstance(dropped, Drop) and dropped == "the prompt alone fills max_length"
    assert fitted([], [LONG, SHORT], 2) == ([], [[5, 6], SHORT], {0: 1})


def test_keeping_the_end_cuts_the_prompt_at_its_start_for_all_completions_alike():
    assert fitted(PROMPT, [LONG, SHORT], 6, "keep_end") == ([2, 3, 4], [LONG, SHORT], {"prompt": 1})
    assert fitted(PROMPT, [SHORT, LONG], 4, "keep_end") == ([4], [SHORT, LONG], {"prompt": 3})
    for prompt, limit in ((PROMPT, 3), ([], 2)):
        dropped = fitted(prompt, [LONG, SHORT], limit, "keep_end")
        assert isinstance(dropped, Drop) and dropped == "a completion alone fills max_length"
    assert fitted([], [LONG, SHORT], 3, "keep_end") == ([], [LONG, SHORT], {})


@pytest.mark.parametrize("limit", [5, 6, 7])
def test_cutting_beside_trls(limit):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    def theirs(mode):
        example = {"prompt_ids": PROMPT, "chosen_ids": LONG, "rejected_ids": SHORT}
        made = DataCollatorForPreference(pad_token_id=0, max_length=limit, truncation_mode=mode)([example])
        return [[token for token in ids if token] for ids in made["input_ids"].tolist()]

    prompt, completions, _ = fitted(PROMPT, [LONG, SHORT], limit)
    assert [prompt + ids for ids in completions] == theirs("keep_start")
    prompt, completions, cut = fitted(PROMPT, [LONG, SHORT], limit, "keep_end")
    chosen, rejected = theirs("keep_end")
    assert prompt + completions[0] == chosen
    # TRL cuts each by itself: the two are judged on different prompts, where ours have one.
    assert rejected == PROMPT + SHORT and prompt + completions[1] == rejected[cut.get("prompt", 0) :]


# ---------------------------------------------------------------- packing


def pair_of(prompt, chosen, rejected):
    return {
        "prompt_ids": [1] * prompt,
        "chosen_ids": [2] * chosen,
        "rejected_ids": [3] * rejected,
        "length": prompt + chosen + rejected,
        "truncated": False,
    }


def test_a_pair_longer_than_max_length_has_a_block_of_its_own():
    """A pair that fits sequence by sequence may have more than max_length tokens in all; nothing of it is lost."""
    rows = [pair_of(6, 4, 4), pair_of(2, 1, 1), pair_of(3, 2, 1), pair_of(1, 1, 2), pair_of(4, 3, 3)]
    blocks = pack(rows, 10, "bfd")
    assert sorted((row for block in blocks for row in block), key=str) == sorted(rows, key=str)
    assert [rows[0]] in blocks and [rows[4]] in blocks
    for block in blocks:
        assert len(block) == 1 or sum(row["length"] for row in block) <= 10
    assert sorted(map(len, blocks)) == [1, 1, 1, 2]
    for strategy in ("bfd_split", "wrapped"):
        with pytest.raises(ConfigError, match="this method's rows have prompt_ids, chosen_ids, rejected_ids"):
            pack(rows, 10, strategy)
