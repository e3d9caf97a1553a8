"""What goes in is what is trained on: contents of rows, in every format, from every loader."""

import gzip
import json
from dataclasses import replace

import pytest
from datasets import Dataset

from ft_host.batch import IGNORE
from ft_host.config import RunConfig
from ft_host.data import open_source, preference_row, prompt_of, tokenize_completions, tokenize_row, unpaired_rows
from ft_host.data.formats import prompt_part, standard
from ft_host.data.messages import messages_of
from ft_host.data.mixture import open_mixture
from ft_host.data.templates import added_ends
from ft_host.data.tokens import chat_ids, conversation
from ft_host.errors import RowError
from ft_host.generation.transformers import end_tokens
from ft_host.models.special_tokens import agree
from ft_host.testing.models import save_tiny, tiny_llama
from ft_host.testing.tokenizers import chat_tokenizer
from ft_host.types import Sampling

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOWN = (
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AS_DATA = SHOWN.replace("CALL", "<call>{{ c.function | tojson }}</call>")
AS_TEXT = SHOWN.replace("CALL", "<call>{{ c.function.name + ' ' + c.function.arguments }}</call>")
AS_ITEMS = SHOWN.replace(
    "CALL",
    "<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}</call>",
)
AS_GIVEN = SHOWN.replace(
    "CALL",
    "<call>{{ c.function.name }} {{ c.function.arguments if c.function.arguments is string else "
    "c.function.arguments | tojson }}</call>",
)
# Closes a turn only by the mark of the next one, as GLM-4.5.
OPEN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}{# <|user|> <|assistant|> #}"
)


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(name, arguments):
    return said("", tool_calls=[{"type": "function", "function": {"name": name, "arguments": arguments}}])


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def config_of(**fields):
    return RunConfig(model="m", dataset="d", max_length=None, **fields)


def tokens(row, tokenizer, *, completion_only=None, assistant_only=False):
    return tokenize_row(row, tokenizer, config_of(), completion_only=completion_only, assistant_only=assistant_only)


def text_of(row, tokenizer):
    return tokenizer.decode(row["input_ids"])


def learnt(row, tokenizer):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORE])


# ---------------------------------------------------------------- Arrow's nulls

TWO = [
    {
        "messages": [user("Weather?"), call("weather", {"city": "Bonn"}), said("12")],
        "tools": [tool("weather", city={"type": "string", "default": None})],
    },
    {
        "messages": [user("Add."), call("add", {"a": 1, "b": {"c": [1]}})],
        "tools": [tool("add", a={"type": "integer"}, b={"type": "object", "enum": ["x"]})],
    },
]


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """The same two rows as JSON lines and in each form that Arrow stores."""
    folder = tmp_path_factory.mktemp("two")
    data = Dataset.from_list(TWO)
    data.to_parquet(folder / "two.parquet")
    data.save_to_disk(folder / "saved")
    with open(folder / "two.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in TWO)
    with gzip.open(folder / "packed.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in TWO)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["two.jsonl", "two.parquet", "saved", "packed.jsonl.gz"])
def test_nulls_that_arrow_fills_in_are_no_part_of_a_row(loaders, name, streaming):
    source = open_source(str(loaders / name), streaming=streaming)
    rows = [row for _, row in source.stream()] if streaming else [source.read(index) for index in range(2)]
    assert rows == TWO
    tokenizer = chat_tokenizer(AS_DATA)
    for row, plain in zip(rows, TWO, strict=True):
        assert tokens(row, tokenizer) == tokens(plain, tokenizer)
        assert "null" not in learnt(tokens(row, tokenizer, assistant_only=True), tokenizer)


def test_nulls_in_mixtures_and_under_other_names(loaders):
    renamed = Dataset.from_list([{"chat": row["messages"], "functions": row["tools"]} for row in TWO])
    renamed.to_parquet(loaders / "renamed.parquet")
    names = {"chat": "messages", "functions": "tools"}
    items = [{"path": str(loaders / "two.parquet")}, {"path": str(loaders / "renamed.parquet"), "columns": names}]
    mix = open_mixture(items, config_of(), "train", False)
    assert [mix.read(index) for index in range(4)] == TWO + TWO


def test_nulls_of_the_user_stay_where_they_can_be_told(tmp_path):
    talk = [user("a"), call("add", {"a": None, "b": 1})]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    row = open_source(str(tmp_path / "rows.jsonl")).read(0)
    assert '"a": null' in text_of(tokens(row, chat_tokenizer(AS_DATA)), chat_tokenizer(AS_DATA))
    as_text = {"messages": [user("a"), call("add", '{"a": null}')], "tools": json.dumps([tool("add", a={"x": None})])}
    other = {"extra": {"a": None, "b": 1}}
    Dataset.from_list([as_text | other, as_text | {"extra": {"a": 2, "b": None}}]).to_parquet(tmp_path / "rows.parquet")
    row = open_source(str(tmp_path / "rows.parquet")).read(0)
    assert row["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"a": null}'
    assert '"x": null' in row["tools"]
    assert row["extra"] == {"a": None, "b": 1}, "a column for rewards is as Arrow gives it"


@pytest.mark.parametrize("make", [preference_row, unpaired_rows])
def test_nulls_in_pairs(tmp_path, make):
    rows = [
        {"prompt": [user("a")], "chosen": [call("f", {"x": "1"})], "rejected": [call("g", {"y": 2})]},
        {"prompt": [user("b")], "chosen": [call("g", {"y": 3})], "rejected": [call("f", {"x": "4"})]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "pairs.parquet")
    source = open_source(str(tmp_path / "pairs.parquet"))
    for index, plain in enumerate(rows):
        assert make(source.read(index), chat_tokenizer(AS_DATA)) == make(plain, chat_tokenizer(AS_DATA))


# ---------------------------------------------------------------- calls of tools

DATA, TEXT = {"a": 1, "b": "zwei"}, '{"a": 1, "b": "zwei"}'


@pytest.mark.parametrize(
    "template, expected",
    [
        (AS_DATA, '<call>{"name": "add", "arguments": {"a": 1, "b": "zwei"}}</call>'),
        (AS_TEXT, '<call>add {"a": 1, "b": "zwei"}</call>'),
        (AS_ITEMS, "<call>add a=1 b=zwei</call>"),
        (AS_GIVEN, '<call>add {"a": 1, "b": "zwei"}</call>'),
    ],
)
@pytest.mark.parametrize("arguments", [DATA, TEXT])
def test_arguments_as_text_and_as_data_give_what_the_template_wants(template, expected, arguments):
    tokenizer = chat_tokenizer(template)
    talk = [user("2+3?"), call("add", arguments)]
    assert expected in text_of(tokens({"messages": talk}, tokenizer), tokenizer)
    pair = {"prompt": talk[:1], "chosen": talk[1:], "rejected": [said("no")]}
    _, (chosen, _) = tokenize_completions(preference_row(pair, tokenizer), tokenizer, ("chosen", "rejected"))
    assert tokenizer.decode(chosen).startswith(expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ('{"a": 1', r"messages\[1\].tool_calls\[0\].arguments: not JSON: .* at column 8; the text begins with"),
        ("[1]", r"arguments: found list '\[1\]', expected \{name: value\}, or its JSON"),
        (json.dumps(TEXT), r"arguments: found str .*\(JSON within JSON\), expected"),
        (5, r"arguments: found int '5', expected"),
    ],
)
def test_arguments_that_are_no_mapping_are_refused(arguments, message):
    with pytest.raises(RowError, match=message):
        messages_of([user("a"), call("add", arguments)], "messages")


def test_calls_without_arguments_and_calls_as_json():
    for arguments in (None, "", {}):
        found = messages_of([user("a"), call("add", arguments)], "messages")
        assert found[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {}}
    calls = json.dumps(call("add", DATA)["tool_calls"])
    assert messages_of([user("a"), said("", tool_calls=calls)], "messages")[1] == call("add", DATA)
    old = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": TEXT}}
    assert messages_of([user("a"), old], "messages")[1]["tool_calls"][0]["function"]["arguments"] == TEXT


def test_tools_as_json_text_at_any_level():
    tokenizer, one = chat_tokenizer(AS_DATA), tool("add", a={"type": "integer"})
    inner = {**one, "function": {**one["function"], "parameters": json.dumps(one["function"]["parameters"])}}
    row = {"messages": [user("a"), said("b")]}
    expected = text_of(tokens(row | {"tools": [one]}, tokenizer), tokenizer)
    for tools in (json.dumps([one]), [json.dumps(one)], [inner]):
        assert text_of(tokens(row | {"tools": tools}, tokenizer), tokenizer) == expected
    with pytest.raises(RowError, match=r"tools\[0\]: not JSON: "):
        tokens(row | {"tools": ["add"]}, tokenizer)


@pytest.mark.parametrize("template", [AS_DATA, AS_DATA.replace("m.content or ''", "m.content | tojson")])
@pytest.mark.parametrize("result", [{"degrees": 12, "sky": "blue"}, ["blue", 12]])
def test_a_result_of_a_tool_as_data_is_plain_json(template, result):
    tokenizer = chat_tokenizer(template)
    talk = [user("a"), call("f", {"x": 1}), {"role": "tool", "content": result}, said("b")]
    shown = text_of(tokens({"messages": talk}, tokenizer), tokenizer)
    assert f"<|im_start|>tool\n{json.dumps(result)}<|im_end|>" in shown


# ---------------------------------------------------------------- formats without text


@pytest.mark.parametrize(
    "turn, message",
    [
        ({"from": "gpt", "value": None}, r"conversations\[1\]: has no value; its keys are from, value \(null\)"),
        ({"from": "gpt"}, r"conversations\[1\]: has no value; its keys are from$"),
        ({"from": "gpt", "text": "b"}, r"has no value; its keys are from, text$"),
        ({"from": "gpt", "value": 5}, r"content: found int '5', expected text"),
        ({"from": "gptt", "value": "b"}, r"from: found 'gptt'; did you mean gpt\?"),
        ({"from": None, "value": "b"}, r"conversations\[1\]: has no role; its keys are from \(null\), value"),
        ({"role": "assistant", "text": "b"}, "has neither content nor tool_calls; its keys are role, text"),
    ],
)
def test_turns_without_text_are_refused(turn, message):
    with pytest.raises(RowError, match=message):
        standard({"conversations": [{"from": "human", "value": "a"}, turn]}, chat=True)


ALPACA = {"instruction": "a", "input": "", "output": "b"}


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(
    "more, message",
    [
        ({"instruction": None}, "column instruction: found nothing, expected text"),
        ({"output": None}, "column output: found nothing, expected text"),
        ({"output": 5}, "column output: found int '5', expected text"),
        ({"input": 0}, "column input: found int '0', expected text"),
        ({"input": ["a"]}, "column input: found a list of texts, expected one text"),
        ({"history": "earlier talk"}, r"column history: found str .*, expected a list of \[question, answer\]"),
        ({"history": ["a", "b"]}, r"history\[0\]: found str 'a', expected \[question, answer\], both texts"),
        ({"history": [["a"]]}, r"history\[0\]: found list .*, expected \[question, answer\]"),
        ({"history": [["a", None]]}, r"history\[0\]: found list .*, expected \[question, answer\]"),
        ({"history": {"a": "b"}}, "column history: found dict"),
        ({"system": 5}, "column system: found int '5', expected text"),
    ],
)
def test_parts_of_alpaca_that_are_no_text_are_refused(more, message, chat):
    with pytest.raises(RowError, match=message):
        standard(ALPACA | more, chat=chat)


def test_alpaca_without_input_and_with_history():
    found = standard(ALPACA | {"input": None, "history": [["c", "d"]], "system": None}, chat=True)
    assert [message["content"] for message in found["prompt"]] == ["c", "d", "a"]
    assert standard(ALPACA | {"history": "", "system": ""}, chat=False)["completion"] == "b"


@pytest.mark.parametrize("value, found", [(None, "nothing"), (5, "int '5'"), (["a", "b"], "a list of texts")])
def test_fields_that_are_no_text_are_refused_by_column(value, found):
    tokenizer = chat_tokenizer(CHATML)
    for make, row, column in (
        (tokens, {"text": value}, "text"),
        (tokens, {"prompt": "a", "completion": value}, "completion"),
        (tokens, {"prompt": value, "completion": "a"}, "prompt"),
        (preference_row, {"prompt": "a", "chosen": value, "rejected": "b"}, "chosen"),
        (preference_row, {"prompt": "a", "chosen": "b", "rejected": value}, "rejected"),
        (unpaired_rows, {"prompt": "a", "completion": value, "label": True}, "completion"),
    ):
        with pytest.raises(RowError, match=f"column {column}: found {found}"):
            make(row, tokenizer)


@pytest.mark.parametrize(
    "label, remedy",
    [("False", "{'True': True, 'False': False}"), ("no", "{'yes': True, 'no': False}"), (0, "{1: True, 0: False}")],
)
def test_the_remedy_for_labels_doesnt_turn_them_round(label, remedy):
    with pytest.raises(RowError) as refused:
        unpaired_rows({"prompt": "a", "completion": "b", "label": label}, chat_tokenizer())
    written = str(refused.value).partition("map(")[2].removesuffix(")")
    assert remedy in written
    assert eval(written)({"label": label}) == {"label": False}


def test_the_remedy_for_other_labels_fails_rather_than_guesses():
    with pytest.raises(RowError, match="with your own labels in it") as refused:
        unpaired_rows({"prompt": "a", "completion": "b", "label": "meh"}, chat_tokenizer())
    written = str(refused.value).partition("map(")[2].partition("), with")[0]
    with pytest.raises(KeyError):
        eval(written)({"label": "meh"})


# ---------------------------------------------------------------- two formats in a row


def test_a_row_in_two_formats_is_refused_unless_they_are_the_same():
    talk = [user("a"), said("b")]
    same = {"prompt": talk[:1], "completion": talk[1:], "messages": talk}
    assert standard(same, chat=True) == {"prompt": talk[:1], "completion": talk[1:]}
    for row in (
        same | {"messages": [user("a"), said("c")]},
        {"prompt": "a", "completion": "b", "messages": talk},
        {"prompt": "a", "completion": "b", "conversations": [{"from": "human", "value": "x"}]},
    ):
        with pytest.raises(RowError, match="prompt and completion, and .* beside it, which isn't the same"):
            standard(row, chat=True)
    with pytest.raises(RowError, match="the row has messages, and conversations beside it"):
        standard({"messages": talk, "conversations": talk[:1]}, chat=True)
    with pytest.raises(RowError, match="messages beside it"):
        unpaired_rows({"prompt": "a", "completion": "b", "label": True, "messages": talk}, chat_tokenizer(CHATML))


def test_columns_of_other_rows_that_arrow_fills_with_nulls_are_absent():
    talk = [user("a"), said("b")]
    empty = dict.fromkeys(("prompt", "completion", "text", "conversations", "input_ids", "instruction", "output"))
    assert standard(empty | {"messages": talk}, chat=True) == {"messages": talk}
    assert standard(empty | {"messages": None, "text": "a"}, chat=True) == {"text": "a"}
    assert standard(empty | {"messages": None, **ALPACA}, chat=False)["completion"] == "b"
    assert prompt_part(empty | {"messages": talk}, chat=True)["prompt"] == talk[:1]


def test_conversations_and_their_arguments_as_json_text():
    """As a CSV file has them; a prompt of text may begin with a bracket."""
    talk = [user("a"), said("b")]
    assert standard({"messages": json.dumps(talk)}, chat=True) == {"messages": talk}
    assert standard({"prompt": "[1", "completion": "]"}, chat=True) == {"prompt": "[1", "completion": "]"}
    with pytest.raises(RowError, match="column messages: not JSON: .* at column 7"):
        standard({"messages": '["a", '}, chat=True)
    row = {"messages": talk, "chat_template_kwargs": '{"x": "THAT"}'}
    tokenizer = chat_tokenizer(CHATML + "{{ x }}")
    assert text_of(tokens(row, tokenizer), tokenizer).endswith("THAT")
    with pytest.raises(RowError, match="column chat_template_kwargs: found list"):
        tokens(row | {"chat_template_kwargs": "[1]"}, tokenizer)


def test_tools_of_an_alpaca_row_are_shown():
    row = ALPACA | {"tools": [tool("add")]}
    assert standard(row, chat=True)["tools"] == [tool("add")]


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]])
def test_padding_is_no_part_of_a_row_of_tokens(mask):
    tokenizer, at = chat_tokenizer(), mask.index(1)
    ids = [0] * at + [5, 6, 7] + [0] * (2 - at)
    pad = lambda values: [1] * at + values + [1] * (2 - at)  # noqa: E731
    assert tokens({"input_ids": ids, "attention_mask": mask}, tokenizer)["labels"] == [5, 6, 7]
    row = {"input_ids": ids, "attention_mask": mask, "completion_mask": pad([0, 1, 1])}
    assert tokens(row, tokenizer)["input_ids"] == [5, 6, 7] and tokens(row, tokenizer)["labels"] == [-100, 6, 7]
    assert prompt_of(row, tokenizer, config_of())[0] == [5]
    pair = {"chosen_ids": ids, "chosen_attention_mask": mask, "rejected_ids": [5, 8], "prompt_ids": [9]}
    assert preference_row(pair, tokenizer)["chosen_ids"] == [5, 6, 7]
    judged = {"prompt_ids": ids, "prompt_attention_mask": mask, "completion_ids": [8], "label": True}
    assert unpaired_rows(judged, tokenizer)[0]["prompt_ids"] == [5, 6, 7]


@pytest.mark.parametrize(
    "mask, message",
    [
        ([1, 0, 1], r"attention_mask\[1\]: a 0 between tokens with 1"),
        ([1, 1], "column attention_mask: 2 values for 3 of input_ids"),
        ([0, 0, 0], "column attention_mask: masks every token"),
        ([1, 2, 1], "column attention_mask: found list .*, expected a list of 0 and 1"),
        ("111", "column attention_mask: found str '111', expected a list of 0 and 1"),
    ],
)
def test_masks_that_are_no_padding_are_refused(mask, message):
    with pytest.raises(RowError, match=message):
        tokens({"input_ids": [5, 6, 7], "attention_mask": mask}, chat_tokenizer())


# ---------------------------------------------------------------- weights of messages


@pytest.mark.parametrize(
    "field", [{"weight": 0}, {"train": False}, {"training": False}, {"loss_mask": 0}, {"loss": False}, {"masked": True}]
)
@pytest.mark.parametrize("marked", [False, True])
def test_a_message_that_isnt_trained_on_has_no_labels(field, marked):
    template = CHATML
    if marked:
        inner = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}"
        template = CHATML.replace("{{ m.content }}<|im_end|>\n", inner + "{{ m.content }}<|im_end|>\n{% endif %}")
    tokenizer = chat_tokenizer(template)
    talk = [
        user("a?"),
        {**said("one"), **field},
        user("b?"),
        {**said("two"), **{name: 1 - field[name] for name in field}},
    ]
    whole = tokens({"messages": talk}, tokenizer)
    plain = tokens({"messages": [user("a?"), said("one"), user("b?"), said("two")]}, tokenizer)
    assert whole["input_ids"] == plain["input_ids"]
    assert "one" not in learnt(whole, tokenizer) and "b?" in learnt(whole, tokenizer)
    assert learnt(tokens({"messages": talk}, tokenizer, assistant_only=True), tokenizer).strip() == "two<|im_end|>"
    split = {"prompt": talk[:1], "completion": talk[1:]}
    assert "one" not in learnt(tokens(split, tokenizer), tokenizer)
    nothing = tokens({"messages": [user("a?"), {**said("one"), **field}]}, tokenizer, assistant_only=True)
    assert nothing["labels"] == [IGNORE] * nothing["length"]


def test_the_content_of_a_user_with_weight_0_has_no_labels():
    tokenizer = chat_tokenizer(CHATML)
    row = tokens({"messages": [{**user("secret"), "weight": 0}, said("one")]}, tokenizer)
    assert "secret" not in learnt(row, tokenizer) and "one<|im_end|>" in learnt(row, tokenizer)


def test_other_weights_are_refused_and_so_are_weights_that_a_method_cant_honour():
    for field in ({"weight": 0.5}, {"train": "no"}, {"loss_mask": [0, 1]}):
        with pytest.raises(RowError, match=rf"messages\[1\]: {next(iter(field))}: found .*, expected 0 or 1"):
            messages_of([user("a"), {**said("b"), **field}], "messages")
    with pytest.raises(RowError, match="weight and train contradict each other"):
        messages_of([{**said("b"), "weight": 0, "train": True}], "messages")
    silent = {**said("b"), "weight": 0}
    tokenizer = chat_tokenizer(CHATML)
    with pytest.raises(RowError, match="column rejected: a message of the assistant .* isn't to be trained on"):
        preference_row({"prompt": [user("a")], "chosen": [said("c")], "rejected": [silent]}, tokenizer)
    with pytest.raises(RowError, match="column completion: a message of the assistant"):
        unpaired_rows({"prompt": [user("a")], "completion": [silent], "label": True}, tokenizer)
    row = {"prompt": [user("a"), silent, user("c")], "chosen": [said("d")], "rejected": [said("e")]}
    assert preference_row(row, tokenizer)["chosen"] == [said("d")], "a prompt isn't trained on anyway"


# ---------------------------------------------------------------- beginnings of answers


def test_a_prompt_that_ends_with_the_beginning_of_an_answer_is_continued():
    tokenizer = chat_tokenizer(CHATML)
    prompt = [user("2+2?"), said("The answer is ")]
    begun = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\nThe answer is "
    assert tokenizer.decode(prompt_of({"prompt": prompt}, tokenizer, config_of())[0]) == begun
    row = tokens({"prompt": prompt, "completion": [said("4.")]}, tokenizer)
    assert text_of(row, tokenizer) == begun + "4.<|im_end|>\n"
    assert learnt(row, tokenizer) == "4.<|im_end|>\n"
    pair = {"prompt": prompt, "chosen": [said("4.")], "rejected": [said("5.")]}
    ids, (chosen, rejected) = tokenize_completions(preference_row(pair, tokenizer), tokenizer, ("chosen", "rejected"))
    assert tokenizer.decode(ids) == begun and tokenizer.decode(chosen + rejected) == "4.<|im_end|>\n5.<|im_end|>\n"
    (judged,) = unpaired_rows({"prompt": prompt, "completion": [said("4.")], "label": True}, tokenizer)
    assert tokenizer.decode(tokenize_completions(judged, tokenizer, ("completion",))[0]) == begun


def test_the_beginning_of_an_answer_is_that_of_transformers():
    tokenizer = chat_tokenizer(CHATML)
    prompt = [user("2+2?"), said("The answer is")]
    theirs = tokenizer.apply_chat_template(prompt, continue_final_message=True, tokenize=False)
    assert tokenizer.decode(prompt_of({"prompt": prompt}, tokenizer, config_of())[0]) == theirs


def test_a_whole_turn_before_a_turn_isnt_taken_for_a_beginning():
    tokenizer = chat_tokenizer(CHATML)
    talk = [user("a"), said("one"), said("two")]
    closed = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(prompt_of({"messages": talk}, tokenizer, config_of())[0]) == closed
    for row in (
        {"chosen": talk, "rejected": [*talk[:2], said("three")]},
        {"prompt": talk[:2], "chosen": talk, "rejected": [*talk[:2], said("three")]},
    ):
        ids, _ = tokenize_completions(preference_row(row, tokenizer), tokenizer, ("chosen", "rejected"))
        assert tokenizer.decode(ids) == closed
    row = tokens({"prompt": talk[:2], "completion": [user("b"), said("c")]}, tokenizer)
    assert "one<|im_end|>\n<|im_start|>user\nb" in text_of(row, tokenizer)


# ---------------------------------------------------------------- roles


def test_roles_of_other_conventions_are_those_that_templates_know():
    talk = [{"role": "System", "content": "s"}, {"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]
    assert [message["role"] for message in messages_of(talk, "messages")] == ["system", "user", "assistant"]
    for names in (("User", "Assistant"), ("human", "bot"), ("user", "model"), ("USER", "ai")):
        talk = [{"role": name, "content": "a"} for name in names]
        assert [message["role"] for message in messages_of(talk, "messages")] == ["user", "assistant"]
    assert messages_of([{"role": "ipython", "content": "a"}], "messages")[0]["role"] == "ipython"
    with pytest.raises(RowError, match=r"messages\[1\]: the roles user and human .* both stand for user"):
        messages_of([user("a"), {"role": "human", "content": "b"}], "messages")


def test_a_row_without_a_turn_of_the_assistant_says_which_roles_it_has():
    talk = [user("a"), {"role": "expert", "content": "b"}]
    row = tokens({"messages": talk}, chat_tokenizer(CHATML), assistant_only=True)
    assert row["unsupervised"].endswith("supervises messages of assistant, and the roles are user, expert")


# ---------------------------------------------------------------- templates without an end of the last turn


def test_a_turn_that_only_the_next_one_closes_is_closed_at_the_end_too():
    tokenizer = chat_tokenizer(OPEN)
    talk = [user("a"), said("b"), user("c"), said("d")]
    for row in (
        tokens({"messages": talk}, tokenizer),
        tokens({"messages": talk}, tokenizer, assistant_only=True),
        tokens({"prompt": talk[:3], "completion": talk[3:]}, tokenizer),
    ):
        assert learnt(row, tokenizer).endswith("d<|user|>")
    assert learnt(tokens({"messages": talk}, tokenizer, assistant_only=True), tokenizer) == "b<|user|>d<|user|>"
    pair = {"prompt": talk[:1], "chosen": [said("b")], "rejected": [said("c")]}
    _, sides = tokenize_completions(preference_row(pair, tokenizer), tokenizer, ("chosen", "rejected"))
    assert [tokenizer.decode(side) for side in sides] == ["b<|user|>", "c<|user|>"]
    assert tokenizer.decode(chat_ids(conversation(tokenizer, talk[:3], {}))).endswith("c"), "no turn of the assistant"
    assert added_ends(tokenizer) == {tokenizer.convert_tokens_to_ids("<|user|>")}
    assert added_ends(chat_tokenizer(CHATML)) == frozenset()


def test_generation_and_the_saved_model_end_at_the_mark_that_closes_turns():
    tokenizer = chat_tokenizer(OPEN)
    model = tiny_llama(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    mark = tokenizer.convert_tokens_to_ids("<|user|>")
    greedy = Sampling(max_new_tokens=1)
    assert set(end_tokens(model, tokenizer, greedy)) == {tokenizer.eos_token_id, mark}
    assert end_tokens(model, tokenizer, replace(greedy, stop_token_ids=[])) == [tokenizer.eos_token_id]
    agree(model, tokenizer)
    assert set(model.generation_config.eos_token_id) == {tokenizer.eos_token_id, mark}


# ---------------------------------------------------------------- what a run says


def test_what_the_template_leaves_out_is_a_finding_and_is_counted_at_the_end(tmp_path, capsys):
    """A run of two rows, of which the template cuts the thoughts of one."""
    from ft_host.cli import main

    tokenizer = chat_tokenizer(CHATML.replace("m.content", "m.content.split('</think>')[-1]"))
    save_tiny(tmp_path / "model", tiny_llama(vocab_size=len(tokenizer)), tokenizer)
    talks = [[user("a"), said("<think>hm</think>b")], [user("a"), said("c")]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    given = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    assert main(["data", "sft", *given]) == 0
    assert "the chat template leaves out thoughts of the assistant: 50.0% of the rows" in capsys.readouterr().out
    sizes = ["--max-steps", "1", "--per-device-train-batch-size", "2", "--output-dir", str(tmp_path / "run")]
    assert main(["train", "sft", *given, *sizes, "--logging-steps", "1"]) == 0
    found = [json.loads(line) for line in (tmp_path / "run" / "findings.jsonl").read_text().splitlines()]
    finding, *_ = [each for each in found if each["code"] == "DATA013"]
    assert finding["message"].startswith("In 50 % of the rows the chat template leaves out thoughts of the assistant")
    assert "left out thoughts of the assistant in 1 rows" in (tmp_path / "run" / "events.jsonl").read_text()
