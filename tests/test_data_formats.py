"""Formats of rows: what is recognised, what is mapped, and what is said of the rest."""

import pytest

from ft_host.data.formats import prompt_part, standard
from ft_host.errors import RowError

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_the_formats_of_the_field():
    assert standard({"text": "a", "meta": 1}, chat=False) == {"text": "a"}
    assert standard({"body": "a"}, chat=False, text_field="body") == {"text": "a"}
    assert standard({"messages": TALK, "source": "x"}, chat=True) == {"messages": TALK}
    assert standard({"prompt": "a", "completion": "b", "answer": "c"}, chat=True) == {"prompt": "a", "completion": "b"}
    talk = {"prompt": TALK[:1], "completion": TALK[1:], "tools": [{"x": 1}], "chat_template_kwargs": {"y": 2}}
    assert standard(talk, chat=True) == talk
    assert standard({"input_ids": [1], "labels": [1], "text": None}, chat=True) == {"input_ids": [1], "labels": [1]}


def test_keys_without_a_value_are_left_out_as_arrow_fills_them_in():
    messages = [{"role": "user", "content": "a", "tool_calls": None}]
    assert standard({"messages": messages}, chat=True)["messages"] == [{"role": "user", "content": "a"}]


def test_sharegpt():
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}
    assert standard(row, chat=True) == {"messages": [{"role": "system", "content": "s"}, *TALK]}
    row = {"conversations": TALK}
    assert standard(row, chat=True) == {"messages": TALK}
    with pytest.raises(RowError, match=r"conversations\[0\]: from: found 'humann'; did you mean human\?"):
        standard({"conversations": [{"from": "humann", "value": "a"}]}, chat=True)


def test_alpaca():
    row = {"instruction": "Add.", "input": "2 3", "output": "5"}
    assert standard(row, chat=True) == {
        "prompt": [{"role": "user", "content": "Add.\n\n2 3"}],
        "completion": [{"role": "assistant", "content": "5"}],
    }
    plain = standard(row, chat=False)
    assert "### Instruction:\nAdd.\n\n### Input:\n2 3\n\n### Response:\n" in plain["prompt"]
    assert plain["completion"] == "5"
    assert "### Input" not in standard(row | {"input": ""}, chat=False)["prompt"]
    with_history = standard(row | {"system": "s", "history": [["q", "a"]]}, chat=True)["prompt"]
    assert [message["role"] for message in with_history] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    "row, said",
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "found the columns prompt, chosen, rejected; they look like "
            r"preference data: use `ft-host train dpo`, `kto`, `orpo`, `reward` or `simpo`, or rename chosen",
        ),
        (
            {"chosen_ids": [5], "rejected_ids": [6]},
            "like tokenised preference data: use `ft-host train dpo`, `kto`, `orpo`",
        ),
        ({"question": "a", "answer": "b"}, r"set dataset_columns to \{question: prompt, answer: completion\}"),
        ({"prompt": "a", "response": "b"}, r"set dataset_columns to \{response: completion\}"),
        ({"dialogue": TALK}, r"conversations: set dataset_columns to \{dialogue: messages\}"),
        ({"prompt": "a"}, "prompts without completions"),
        ({"content": "a"}, r"plain text: set dataset_columns to \{content: text\}"),
        ({"mesages": TALK}, "mesages may be meant as messages; expected text; messages"),
        ({"foo": 1}, "found the columns foo; expected text; messages; prompt and completion"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "look like unpaired preference data, .* `ft-host train kto`",
        ),
        ({"prompt": "a", "completion": None}, "column completion: found nothing, expected text"),
        ({"prompt": TALK, "completion": "b"}, "column completion: found str 'b', expected messages"),
        ({"text": 3}, "column text: found int '3', expected text"),
        ({"messages": []}, r"column messages: found list '\[\]', expected a list"),
        (
            {"messages": [{"rol": "user", "content": "a"}]},
            r"messages\[0\]: has no role; rol may be meant as role; its k",
        ),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: has neither content nor tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part of its content is 'image'; only text"),
        ({"image": "x", "text_": "a"}, "images, which isn't supported yet"),
    ],
)
def test_refusals_name_what_was_found_and_expected(row, said):
    with pytest.raises(RowError, match=said):
        standard(row, chat=True)


def test_the_prompt_of_a_row():
    assert prompt_part({"prompt": "a", "answer": "5"}, chat=True) == {"prompt": "a"}
    assert prompt_part({"prompt": "a", "chosen": "b", "rejected": "c"}, chat=True) == {"prompt": "a"}
    assert prompt_part({"messages": TALK * 2}, chat=True) == {"prompt": (TALK * 2)[:3]}
    assert prompt_part({"messages": TALK[:1]}, chat=True) == {"prompt": TALK[:1]}
    assert prompt_part({"instruction": "a", "output": "b"}, chat=True)["prompt"] == TALK[:1]
    with pytest.raises(RowError, match="plain text has no prompt"):
        prompt_part({"text": "a"}, chat=True)
    with pytest.raises(RowError, match="begins with the assistant"):
        prompt_part({"messages": TALK[1:]}, chat=True)
