"""What a chat template leaves out of a row: refused where a content or a call is missing, counted where thoughts, tools
or names are, in every mode. No published template is accused of what it shows."""

import json
import random
from pathlib import Path

import pytest
import trl

from ft_host.config import RunConfig
from ft_host.data import preference_row, prompt_of, tokenize_completions, tokenize_row, turn_spans, unpaired_rows
from ft_host.data.chat_tokens import chat_ids, conversation
from ft_host.data.messages import messages_of
from ft_host.data.omissions import noting
from ft_host.data.templates import Conversation, has_markers
from ft_host.errors import RowError
from ft_host.testing.tokenizers import chat_tokenizer

TEMPLATES = {
    path.stem: path
    for folder in (Path(trl.__file__).parent / "chat_templates", Path(__file__).parent / "templates")
    for path in sorted(folder.glob("*.jinja"))
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CUT = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
INSIDE = CHATML.replace(
    "{{ m.content }}",
    "{% if '[T]' in m.content %}{{ m.content.split('[T]')[0] + m.content.split('[/T]')[-1] }}{% else %}{{ m.content }}"
    "{% endif %}",
)
CALLS = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>"
    "{% endfor %}",
)


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": text}


CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 2, "b": "drei"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "adds",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "one"}}},
        },
    }
]
CALLED = [user("2+3?"), said("", tool_calls=[CALL]), tool("12"), said("It is 12 degrees.")]


def config_of(**fields):
    return RunConfig(model="m", dataset="d", max_length=None, **fields)


def sft(row, tokenizer, assistant_only=False):
    return tokenize_row(row, tokenizer, config_of(), completion_only=None, assistant_only=assistant_only)


def pair(row, tokenizer):
    return tokenize_completions(preference_row(row, tokenizer), tokenizer, ("chosen", "rejected"))


def judged(row, tokenizer):
    return [tokenize_completions(each, tokenizer, ("completion",)) for each in unpaired_rows(row, tokenizer)]


def every_mode(talk, **more):
    """Rows that hold a conversation in each mode, with what makes tokens of them."""
    prompt, completion = talk[:-1], talk[-1:]
    other = [said("other")]
    return [
        (sft, {"messages": talk, **more}),
        (lambda row, tokenizer: sft(row, tokenizer, True), {"messages": talk, **more}),
        (sft, {"prompt": prompt, "completion": completion, **more}),
        (pair, {"prompt": prompt, "chosen": completion, "rejected": other, **more}),
        (pair, {"prompt": prompt, "chosen": other, "rejected": completion, **more}),
        (judged, {"prompt": prompt, "completion": completion, "label": True, **more}),
    ]


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize(
    "template, talk, message",
    [
        (CHATML, CALLED, r"messages\[1\]: the assistant calls add, but .* leaves the call out"),
        (CHATML, [user("2+3?"), said("", tool_calls=[CALL])], "leaves the call out"),
        (CALLS.replace("c.function | tojson", "c.function.name"), CALLED, "leaves the argument a of the call out"),
        (
            CALLS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
            CALLED,
            r"messages\[2\]: the chat template leaves this message of tool out, or a part of it \('12'\)",
        ),
        (
            CHATML.replace("{% for m in messages %}", "{% for m in messages[1:] %}"),
            [user("first"), said("b"), user("c"), said("d")],
            r"messages\[0\]: the chat template leaves this message of user out",
        ),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content[:8] }}"),
            [user("short"), said("a sentence that is longer")],
            r"messages\[1\]: the chat template leaves this assistant turn out, or a part of it \('a sentence",
        ),
    ],
)
def test_a_content_or_call_that_the_template_leaves_out_is_refused_in_every_mode(mode, template, talk, message):
    make, row = every_mode(talk)[mode]
    with pytest.raises(RowError, match=message):
        make(row, chat_tokenizer(template))


def test_a_prompt_of_a_rollout_is_checked_too():
    tokenizer = chat_tokenizer(CHATML)
    with pytest.raises(RowError, match="leaves the call out"):
        prompt_of({"prompt": CALLED[:3]}, tokenizer, config_of())


def test_a_template_that_changes_contents_isnt_accused_of_leaving_them_out():
    talk = [user('say "5" & <go>'), said("  It's\n\n5.  ")]
    for change in ("| tojson", "| e", "| upper", "| trim", "| replace('5', 'five')", ".split() | join(' ')"):
        template = CHATML.replace("m.content", f"(m.content {change})" if change[0] == "|" else f"(m.content{change})")
        assert chat_ids(conversation(chat_tokenizer(template), talk, {})), change


def test_a_template_that_looks_functions_up_isnt_accused_of_leaving_calls_out():
    template = CHATML.replace(
        "{{ m.content }}",
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{% for t in tools if t.function.name == c.function.name %}"
        "<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}",
    )
    none = {"type": "function", "function": {"name": "add", "arguments": {}}}
    for call in (CALL, none):
        talk = [user("2+3?"), said("", tool_calls=[call]), tool("12"), said("It is 12 degrees.")]
        assert chat_ids(conversation(chat_tokenizer(template), messages_of(talk, "messages"), {"tools": TOOLS}))
    with pytest.raises(RowError, match="the assistant calls add, but .* leaves the call out"):
        chat_ids(conversation(chat_tokenizer(CHATML), [user("a"), said("", tool_calls=[none])], {}))


# ---------------------------------------------------------------- counted


@pytest.mark.parametrize(
    "template, talk, more, kinds",
    [
        (CUT, [user("a"), said("<think>\nhm\n</think>\nb")], {}, {"thoughts"}),
        (CUT, [user("a"), said("hm\n</think>\nb")], {}, {"thoughts"}),
        (CUT, [user("a"), said("<think>\n\n</think>\nb")], {}, set()),
        (INSIDE, [user("a"), said("[T]hm, so[/T]b")], {}, {"thoughts"}),
        (INSIDE, [user("a [T]hm, so[/T] b"), said("b")], {}, {"parts"}),
        (CHATML, [user("a"), said("b", reasoning_content="hm")], {}, {"thoughts"}),
        (CHATML, [user("a"), said("b", thinking="hm")], {}, {"thoughts"}),
        (CHATML, [user("a"), said("<think>hm</think>b")], {}, set()),
        (CHATML, [user("a"), said("b")], {"tools": TOOLS}, {"tools"}),
        (CHATML, [user("a"), said("b")], {"tools": json.dumps(TOOLS)}, {"tools"}),
        (CHATML, [{**user("a"), "name": "Ada"}, said("b")], {}, {"names"}),
        (CALLS, CALLED, {}, set()),
        (
            CALLS.replace("or ''", "if not m.tool_calls"),
            [*CALLED[:1], said("I add", tool_calls=[CALL])],
            {},
            {"beside"},
        ),
    ],
)
def test_thoughts_tools_and_names_that_the_template_leaves_out_are_counted(template, talk, more, kinds):
    tokenizer = chat_tokenizer(template)
    for make, row in every_mode(talk, **more):
        if kinds == {"beside"} and "label" in row:
            continue
        with noting() as found:
            make(row, tokenizer)
        assert found == kinds, row


def test_thoughts_of_earlier_turns_are_counted_and_those_of_the_last_are_shown():
    tokenizer = chat_tokenizer(TEMPLATES["qwen3"].read_text(encoding="utf-8"))
    think = "<think>\nhm\n</think>\n\n"
    for talk, kinds in (
        ([user("a"), said(think + "b")], set()),
        ([user("a"), said(think + "b"), user("c"), said("d")], {"thoughts"}),
    ):
        with noting() as found:
            chat_ids(conversation(tokenizer, talk, {}))
        assert found == kinds


# ---------------------------------------------------------------- published templates


PLAIN = [
    [user("What is 2+3?"), said("It is 5.")],
    [user("a"), said("a"), user("user"), said("assistant")],
    [user('Hi\n there <b> & "c"\\n'), said("  It's 5.\n\n ")],
    [user("a?"), said("<think>\nhm\n</think>\n\none"), user("b?"), said("<think>\nhmm\n</think>\n\ntwo")],
    [{"role": "user", "content": [{"type": "text", "text": "in parts"}]}, said("b")],
]


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_published_template_is_accused_of_what_it_shows(name):
    tokenizer = chat_tokenizer(TEMPLATES[name].read_text(encoding="utf-8"))
    for talk in PLAIN:
        text = tokenizer.decode(chat_ids(conversation(tokenizer, messages_of(talk, "messages"), {})))
        for message in talk:
            content = message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
            assert content.rpartition("</think>")[2].strip() in text
        prompt = chat_ids(conversation(tokenizer, messages_of(talk[:1], "messages"), {}), ask=True)
        assert prompt


# ---------------------------------------------------------------- long conversations


def long_talk(kind, turns):
    draw = random.Random(kind)
    words = ["user", "assistant", "one", "two", "<b>", "\n", "five ", " six", "\n\n", "It is,", "漢字", "5."]

    def text():
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, 6))).strip() or "x"

    talk = []
    for number in range(turns):
        talk.append(user(text()))
        if kind == "tools" and number % 3 == 1:
            talk += [said("", tool_calls=[CALL]), tool("5")]
        thought = f"<think>\n{text()}\n</think>\n\n" if kind == "think" and number % 2 else ""
        blanks = draw.choice([("", ""), (" ", "\n"), ("\n", " ")]) if kind == "blanks" else ("", "")
        talk.append(said(blanks[0] + thought + text() + blanks[1]))
        if kind == "double" and number % 4 == 0:
            talk.append(said("more"))
    return talk


def spans_of(tokenizer, talk, tools):
    try:
        chat = conversation(tokenizer, messages_of(talk, "messages"), {"tools": tools})
        return turn_spans.assistant_spans(chat, chat.whole())
    except RowError as error:
        return str(error)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.endswith("_training")])
def test_turns_found_together_are_those_found_one_by_one(name, monkeypatch):
    tokenizer = chat_tokenizer(TEMPLATES[name].read_text(encoding="utf-8"))
    for kind in ("plain", "blanks", "double", "think", "tools"):
        talk, tools = long_talk(kind, 9), TOOLS if kind == "tools" else None
        together = spans_of(tokenizer, talk, tools)
        with monkeypatch.context() as patched:
            patched.setattr(turn_spans, "MANY", 10**6)
            patched.setattr(turn_spans.Begins, "lead", lambda self, known: None)
            assert spans_of(tokenizer, talk, tools) == together


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "deepseekv3", "glm4moe", "mistral_v3"])
def test_a_long_conversation_isnt_rendered_for_each_turn(name, monkeypatch):
    tokenizer = chat_tokenizer(TEMPLATES[name].read_text(encoding="utf-8"))
    assert not has_markers(conversation(tokenizer, [], {}))
    count, render = [0], Conversation.render

    def counted(self, messages, *, ask=False):
        count[0] += 1
        return render(self, messages, ask=ask)

    monkeypatch.setattr(Conversation, "render", counted)
    used = []
    for turns in (40, 160):
        count[0] = 0
        sft({"messages": [user("a"), said("b c")] * turns}, tokenizer, assistant_only=True)
        used.append(count[0])
    assert used[1] <= used[0] + 12 and used[1] < 60
