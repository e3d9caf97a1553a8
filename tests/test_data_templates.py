"""The assistant's turns, found in what published chat templates render, without generation marks."""

from pathlib import Path

import pytest
import transformers
import trl
from packaging.version import Version

from ft_host.batch import IGNORE
from ft_host.data.templates import common_prefix, common_suffix
from ft_host.data.tokens import assistant_tokens, chat_ids, conversation
from ft_host.errors import RowError
from ft_host.testing.tokenizers import TEXT, chat_tokenizer, control_tokens

OURS = Path(__file__).parent / "templates"
TRLS = Path(trl.__file__).parent / "chat_templates"

# What ends a turn: in the middle of a conversation, and at its end where that differs.
CLOSE = {
    "chatml": "<|im_end|>",
    "zephyr": "</s>",
    "llama2": " </s>",
    "mistral_v3": "</s>",
    "phi4": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "phi3_5": "<|end|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "gptoss": ("<|end|>", "<|return|>"),
    "glm4moe": "<|user|>",
}
# What a template puts between the prompt it would generate from and the content, so that a model has to write it.
BEFORE = {
    "llama2": (" ", " "),
    "mistral_v3": (" ", " "),
    "qwen3": ("", "<think>\n\n</think>\n\n"),
    "gptoss": ("<|channel|>final<|message|>",) * 2,
    "glm4moe": ("\n<think></think>\n",) * 2,
}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "name": "add", "tool_call_id": "abcdefghi", "content": text}


CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "adds",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
        },
    }
]


@pytest.fixture(scope="module")
def tokenizers():
    made = {}

    def get(name):
        if name not in made:
            path = OURS / f"{name}.jinja"
            template = (path if path.is_file() else TRLS / f"{name}.jinja").read_text(encoding="utf-8")
            made[name] = chat_tokenizer(template)
        return made[name]

    return get


def turns(tokenizer, messages, **row):
    """The runs of supervised tokens, decoded."""
    talk = conversation(tokenizer, messages, row)
    ids, labels = assistant_tokens(talk)
    assert ids == chat_ids(talk), "the mask must not change the tokens"
    runs, open_run = [], False
    for token, label in zip(ids, labels, strict=True):
        assert label in (token, IGNORE)
        if label == IGNORE:
            open_run = False
            continue
        if not open_run:
            runs.append([])
        runs[-1].append(token)
        open_run = True
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", CLOSE)
def test_exactly_the_text_and_the_end_of_each_turn(tokenizers, name):
    found = turns(tokenizers(name), [user("What is 2+3?"), assistant("It is 5."), user("Sure?"), assistant("Yes, 5.")])
    close = CLOSE[name] if isinstance(CLOSE[name], tuple) else (CLOSE[name],) * 2
    before = BEFORE.get(name, ("", ""))
    assert found == [before[0] + "It is 5." + close[0], before[1] + "Yes, 5." + close[1]]


@pytest.mark.parametrize("name", [name for name in CLOSE if name not in ("gemma",)])
def test_with_a_system_prompt_and_blanks_around_contents(tokenizers, name):
    messages = [{"role": "system", "content": "Be brief. "}, user(" 2+3? \n"), assistant("  It is 5.\n"), user("ok")]
    found = turns(tokenizers(name), messages)
    close = CLOSE[name][0] if isinstance(CLOSE[name], tuple) else CLOSE[name]
    assert len(found) == 1
    assert found[0].endswith(close) and "It is 5." in found[0]
    assert "2+3" not in found[0] and "brief" not in found[0] and "ok" not in found[0]


@pytest.mark.parametrize("name", CLOSE)
def test_a_turn_that_repeats_the_user_or_another_turn(tokenizers, name):
    found = turns(tokenizers(name), [user("one"), assistant("one"), user("<"), assistant("<b>one</b>")])
    assert len(found) == 2
    assert "<b>one</b>" in found[1] and found[1].count("one") == 1 and found[0].count("one") == 1


def test_thinking_of_earlier_turns_is_dropped_by_the_template(tokenizers):
    think = "<think>\nhm\n</think>\n\n"
    messages = [user("a?"), assistant(think + "one"), user("b?"), assistant(think + "two")]
    assert turns(tokenizers("qwen3"), messages) == ["one<|im_end|>", think + "two<|im_end|>"]
    end = CLOSE["deepseekv3"]
    assert turns(tokenizers("deepseekv3"), messages) == ["\n\none" + end, "\n\ntwo" + end]
    assert turns(tokenizers("chatml"), messages) == [think + "one<|im_end|>", think + "two<|im_end|>"]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"), reason="templates get thoughts under their own name alone"
)
def test_reasoning_in_a_field_of_its_own(tokenizers):
    messages = [user("a?"), assistant("one", reasoning_content="hm"), user("b?"), assistant("two", reasoning="hmm")]
    assert turns(tokenizers("qwen3"), messages) == ["one<|im_end|>", "<think>\nhmm\n</think>\n\ntwo<|im_end|>"]
    assert (
        turns(tokenizers("gptoss"), messages)[1]
        == "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>final<|message|>two<|return|>"
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("qwen2_5", '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'),
        ("qwen3", '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "add", "parameters": {"a": 2, "b": 3}}<|eot_id|>'),
        ("mistral_v3", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": 3}, "id": "abcdefghi"}]</s>'),
        ("gptoss", ' to=functions.add<|channel|>commentary json<|message|>{"a": 2, "b": 3}<|call|>'),
    ],
)
def test_tool_calls_are_the_assistants_and_tool_results_are_not(tokenizers, name, expected):
    messages = [
        user("2+3?"),
        assistant("", tool_calls=[CALL]),
        tool("5"),
        assistant("Five."),
        user("ok"),
        assistant("Bye."),
    ]
    found = turns(tokenizers(name), messages, tools=TOOLS)
    assert found[0] == expected
    assert len(found) == 3 and "Five." in found[1] and "Bye." in found[2]
    assert turns(tokenizers(name), messages, tools=str(TOOLS).replace("'", '"')) == found, "tools as JSON text"


def test_a_call_ends_with_its_own_token_where_the_template_has_one(tokenizers):
    messages = [user("2+3?"), assistant("", tool_calls=[CALL]), tool("5"), assistant("Five.")]
    messages[1]["tool_calls"] = [{"type": "function", "function": {"name": "add", "arguments": {"a": "2"}}}]
    found = turns(tokenizers("llama3_1"), messages, chat_template_kwargs={"builtin_tools": ["add"]})
    assert found[0].endswith("<|eom_id|>") and "start_header" not in found[0]


def test_assistant_messages_that_follow_each_other(tokenizers):
    messages = [user("a?"), assistant("one"), assistant("two"), user("c"), assistant("three")]
    assert turns(tokenizers("chatml"), messages) == ["one<|im_end|>", "two<|im_end|>", "three<|im_end|>"]
    assert turns(tokenizers("llama3"), messages) == ["one<|eot_id|>", "two<|eot_id|>", "three<|eot_id|>"]
    assert turns(tokenizers("qwen3"), messages)[:2] == ["one<|im_end|>", "two<|im_end|>"]
    assert turns(tokenizers("deepseekv3"), messages)[1] == "two" + CLOSE["deepseekv3"]


def test_a_conversation_that_begins_with_the_assistant_or_ends_with_the_user(tokenizers):
    assert turns(tokenizers("chatml"), [assistant("hello"), user("c")]) == ["hello<|im_end|>"]
    assert turns(tokenizers("mistral_v3"), [assistant("hello"), user("c")]) == [" hello</s>"]
    assert turns(tokenizers("chatml"), [user("c")]) == []


def test_an_end_token_inside_a_turn_does_not_end_it(tokenizers):
    found = turns(tokenizers("chatml"), [user("a"), assistant("say <|im_end|> twice"), user("b"), assistant("no")])
    assert found == ["say <|im_end|> twice<|im_end|>", "no<|im_end|>"]


def test_text_beyond_ascii(tokenizers):
    messages = [user("grüße?"), assistant("Ölfarbe — naïve 漢字 🙂"), user("é"), assistant("e\u0301")]
    found = turns(tokenizers("llama3"), messages)
    assert found == ["Ölfarbe — naïve 漢字 🙂<|eot_id|>", "e\u0301<|eot_id|>"]


def sentence_pieces(template, legacy):
    """A BPE tokenizer as SentencePiece makes them (Llama 2, Mistral, Gemma): blanks are part of tokens, unknown
    characters are bytes. `legacy` ones put a blank before every stretch of text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(steps)
    special = list(dict.fromkeys(["<unk>", "<s>", "</s>", *control_tokens(template)]))
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    return fast


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("name", ["llama2", "mistral_v3", "gemma", "phi3", "zephyr", "chatml"])
def test_tokenizers_that_make_blanks_part_of_tokens(tokenizers, name, legacy):
    tokenizer = sentence_pieces(tokenizers(name).chat_template, legacy)
    found = turns(tokenizer, [user("2+3?"), assistant("It is 5. 漢字🙂"), user("Sure?"), assistant("Yes.\n")])
    assert [text.strip() for text in found] == [
        f"It is 5. 漢字🙂{CLOSE[name]}",
        ("Yes." if name in ("llama2", "mistral_v3", "gemma") else "Yes.\n") + CLOSE[name],
    ]


def test_a_padding_token_that_is_the_end_token_changes_nothing(tokenizers):
    messages = [user("a"), assistant("b")]
    plain = tokenizers("zephyr")
    padded = chat_tokenizer(plain.chat_template)
    padded.pad_token = padded.eos_token
    assert turns(padded, messages) == turns(plain, messages) == ["b</s>"]


def test_a_turn_that_the_template_leaves_out_is_refused(tokenizers):
    with pytest.raises(RowError, match=r"messages\[1\]: the assistant calls add, but .* leaves the call out"):
        turns(tokenizers("chatml"), [user("a"), assistant("", tool_calls=[CALL]), tool("5"), assistant("b")])
    with pytest.raises(RowError, match=r"messages\[1\]: the assistant calls add, but .* leaves the call out"):
        turns(tokenizers("chatml"), [user("a"), assistant("calling", tool_calls=[CALL]), tool("5"), assistant("b")])


def test_a_template_that_changes_what_is_said_is_refused():
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | replace('5', 'five') }}<|end|>{% endfor %}"
    with pytest.raises(RowError, match=r"messages\[1\]: the assistant says 'It is 5.'"):
        turns(chat_tokenizer(template), [user("a"), assistant("It is 5.")])


def test_a_template_that_refuses_the_roles_is_named_so(tokenizers):
    with pytest.raises(RowError, match=r"chat template refuses .*must alternate.*roles: user, user"):
        turns(tokenizers("gemma"), [user("a"), user("b")])


def test_no_template_at_all():
    with pytest.raises(RowError, match="no chat template; set chat_template_path"):
        turns(chat_tokenizer(), [user("a"), assistant("b")])


# ---------------------------------------------------------------- generation marks


MARKED = [
    "llama3_training",
    "qwen2_5_vl_training",
    "gemma_training",
    "phi3_training",
    "qwen3_training",
    "qwen3_instruct_2507_training",
]


@pytest.mark.parametrize("name", MARKED)
def test_marks_of_the_template_are_taken_as_they_are(tokenizers, name):
    tokenizer = tokenizers(name)
    messages = [user("What is 2+3?"), assistant("It is 5."), user("Sure?"), assistant("Yes, 5.")]
    ids, labels = assistant_tokens(conversation(tokenizer, messages, {}))
    made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ids == made["input_ids"]
    assert [label != IGNORE for label in labels] == [bool(bit) for bit in made["assistant_masks"]]


@pytest.mark.parametrize("name", ["llama3", "gemma", "qwen3_instruct_2507", "phi3"])
def test_what_is_found_is_what_marks_say_but_for_blanks_after_the_end(tokenizers, name):
    messages = [user("What is 2+3?"), assistant("It is 5."), user("Sure?"), assistant("Yes, 5.")]
    found = turns(tokenizers(name), messages)
    marked = turns(tokenizers(f"{name}_training"), messages)
    if name == "phi3":  # its marks also take the end of text after the end of the last turn
        marked[1] = marked[1].removesuffix("</s>")
    assert found == [text.rstrip("\n") for text in marked]


def test_an_end_of_turn_outside_of_the_marks_is_supervised_too():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = turns(chat_tokenizer(template), [user("a"), assistant("b"), user("c"), assistant("d")])
    assert found == ["b<|im_end|>", "d<|im_end|>"]


def test_marks_around_nothing_are_refused():
    template = "{% for m in messages %}<|im_start|>{{ m.content }}{% if m.role == 'bot' %}{% generation %}x{% endgeneration %}{% endif %}{% endfor %}"  # fmt: skip # noqa: E501
    with pytest.raises(RowError, match="marks, but none around"):
        turns(chat_tokenizer(template), [user("a"), assistant("b")])


@pytest.mark.parametrize("a, b", [("", ""), ("a", ""), ("abc", "abd"), ("abc", "abcde"), ("x" * 999 + "a", "x" * 1001)])
def test_common_prefix_and_suffix(a, b):
    brute = next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), min(len(a), len(b)))
    assert common_prefix(a, b) == common_prefix(b, a) == brute
    assert common_suffix(a[::-1], b[::-1]) == brute
