"""Conversations with tools, turn by turn: what is called, which tokens come of it, and which of them are the
model's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from ft_grpo.config import GRPOConfig

from ft_host.data.tokens import chat_ids, conversation, shared
from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.generation import Completion, Sampling
from ft_host.rollouts.parsing import by_tags, read_turn
from ft_host.rollouts.rows import completion_row
from ft_host.rollouts.talking import of_turn
from ft_host.rollouts.tools import load_tools
from ft_host.rollouts.turn_boundary import between, check_template
from ft_host.rollouts.turns import run_episodes
from ft_host.testing.tokenizers import chat_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"

TOOLS = '''
import asyncio, time


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: one of them
        b: the other
    """
    return a + b


async def times(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: one of them
        b: the other
    """
    await asyncio.sleep(0.001)
    return a * b


def fail(why: str) -> str:
    """Fails.

    Args:
        why: the reason
    """
    raise ValueError(why)


def hang() -> str:
    """Takes its time."""
    time.sleep(30)


def recite(length: int) -> str:
    """Recites.

    Args:
        length: of the text
    """
    return "la " * length


class Counter:
    """Counts for one completion."""

    def reset(self, start, **columns):
        self.value = start
        return f" The counter is at {start}." if start else None

    def increase(self, by: int) -> int:
        """Counts on.

        Args:
            by: how far
        """
        self.value += by
        return self.value

    def get_reward(self):
        if self.value > 100:
            raise OverflowError("too far")
        return self.value / 10
'''


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of("qwen2_5")


def tokenizer_of(name):
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    eos = next((mark for mark in ("<|im_end|>", "<|eot_id|>", "<|return|>") if mark in template), "</s>")
    return chat_tokenizer(template, eos_token=eos)


@pytest.fixture
def box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(TOOLS)

    def make(*tools, **fields):
        fields = {"tool_timeout": 5.0} | fields
        config = GRPOConfig(
            model="m", dataset="d", reward=["r"], tools=[f"tools.py:{name}" for name in tools], **fields
        )
        return config, load_tools(config)

    return make


def row_of(tokenizer, toolbox, text="what is 2 plus 3?", group=0, **columns):
    prompt = [{"role": "user", "content": text}]
    ids = chat_ids(conversation(tokenizer, prompt, {"tools": toolbox.schemas}), ask=True)
    return {"prompt": prompt, "prompt_ids": ids, "columns": {"prompt": prompt, **columns}, "group": group}


def called(name, **arguments):
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}) + "\n</tool_call>"


class Script:
    """A model that says, as completion `number`, these texts turn after turn. Keeps what it was asked."""

    def __init__(self, tokenizer, texts, end="<|im_end|>"):
        self.tokenizer, self.texts, self.end = tokenizer, texts, end
        self.asked = []

    def __call__(self, requests, sampling):
        self.asked.append((requests, sampling))
        return [self.answer(request, len(self.asked) - 1, sampling) for request in requests]

    def answer(self, request, turn, sampling):
        ids = self.tokenizer(self.texts[request.number][turn] + self.end, add_special_tokens=False)["input_ids"]
        longest = request.max_new_tokens or sampling.max_new_tokens
        cut = ids[:longest]
        return Completion(
            token_ids=cut,
            logprobs=[-0.5 - turn] * len(cut),
            versions=[turn] * len(cut),
            finish_reason="stop" if cut == ids else "length",
        )


def talk(tokenizer, box, texts, rows=None, generations=1, longest=1000, positions=None, **more):
    config, toolbox = box
    script = texts if isinstance(texts, Script) else Script(tokenizer, texts, **more)
    rows = rows or [row_of(tokenizer, toolbox)]
    sampling = Sampling(max_new_tokens=longest, seed=7)
    done = run_episodes(rows, generations, script, sampling, tokenizer, config, toolbox, lambda here: here, positions)
    return done, script


def spans(tokenizer, done):
    """(whose, text) of each run of tokens."""
    runs = []
    for token, own in zip(done.token_ids, done.sampled, strict=True):
        if not runs or runs[-1][0] != own:
            runs.append((own, []))
        runs[-1][1].append(token)
    return [("model" if own else "template", tokenizer.decode(ids)) for own, ids in runs]


def outputs(done):
    return [message["content"] for message in done.messages if message["role"] == "tool"]


# ---------------------------------------------------------------- a call


def test_a_tool_is_called_and_its_result_is_in_the_tokens_but_not_the_models(tokenizer, box):
    (done,), script = talk(tokenizer, box("add"), [[called("add", a=2, b=3), "it is 5"]])
    assert spans(tokenizer, done) == [
        ("model", called("add", a=2, b=3) + "<|im_end|>"),
        ("template", "\n<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n"),
        ("model", "it is 5<|im_end|>"),
    ]
    heard, last = done.sampled.count(False), done.sampled[::-1].index(False)
    assert [logp for logp, own in zip(done.logprobs, done.sampled, strict=True) if not own] == [0.0] * heard
    first = len(tokenizer(called("add", a=2, b=3) + "<|im_end|>")["input_ids"])
    assert done.logprobs[:first] == [-0.5] * first and done.logprobs[-1] == -1.5
    assert done.versions == [0] * (len(done.sampled) - last) + [1] * last
    assert (done.turns, done.finish_reason, done.calls, done.failures, done.prompt_ids) == (2, "stop", 1, 0, [])
    call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    assert done.messages == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "tool_call_id": "call00000", "content": "5"},
        {"role": "assistant", "content": "it is 5"},
    ]
    # the second prompt is the first one, what was sampled, and the template's tokens, each as they are
    (one,), (two,) = script.asked[0][0], script.asked[1][0]
    assert two.prompt_ids == one.prompt_ids + done.token_ids[:-last]
    assert two.max_new_tokens == 1000 - (len(two.prompt_ids) - len(one.prompt_ids)) and one.number == two.number
    row = completion_row(row_of(tokenizer, box("add")[1]), done)
    assert len(row["sampling_logps"]) == sum(row["sampled"]) < len(row["completion_ids"])


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507"])
def test_tokens_are_those_that_the_template_makes_of_the_whole_conversation(name, calls, box):
    tokenizer = tokenizer_of(name)
    config, toolbox = box("add", "times")
    thought = "<think>\n\n</think>\n\n" if name == "qwen3" else ""  # its template puts that before the last turn only
    asked = "\n".join([called("add", a=2, b=3), called("times", a=2, b=3)][:calls])
    row = row_of(tokenizer, toolbox)
    (done,), _ = talk(tokenizer, (config, toolbox), [[asked, thought + "it is 5"]], [row])
    assert outputs(done) == ["5", "6"][:calls]
    messages = [*row["prompt"], *done.messages[:-1], {"role": "assistant", "content": "it is 5"}]
    whole = chat_ids(conversation(tokenizer, messages, {"tools": toolbox.schemas}))
    ours = row["prompt_ids"] + done.token_ids
    assert ours == whole[: len(ours)]
    assert tokenizer.decode(whole[len(ours) :]).strip() == ""


def test_sampled_tokens_stay_as_they_are_where_the_tokenizer_would_write_them_otherwise(tokenizer, box):
    odd = [token for letter in called("add", a=2, b=3) for token in tokenizer(letter)["input_ids"]]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert odd != tokenizer(called("add", a=2, b=3))["input_ids"]

    def engine(requests, sampling):
        first = len(requests[0].prompt_ids) == len(row["prompt_ids"])
        ids = [*odd, end] if first else [end]
        return [Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason="stop")]

    config, toolbox = box("add")
    row = row_of(tokenizer, toolbox)
    (done,), _ = talk(tokenizer, (config, toolbox), Engine(engine), [row])
    assert done.token_ids[: len(odd)] == odd and done.calls == 1 and done.versions == []


class Engine(Script):
    def __init__(self, call):
        self.call = call

    def __call__(self, requests, sampling):
        return self.call(requests, sampling)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_instruct_2507"])
def test_what_the_template_puts_between_is_trls(name, box):
    from trl.trainer.grpo_trainer import GRPOTrainer

    tokenizer = tokenizer_of(name)
    _, toolbox = box("add")
    template = (TEMPLATES / f"{name}_training.jinja").read_text(encoding="utf-8") if name == "qwen3" else None
    trainer = SimpleNamespace(
        processing_class=tokenizer, _tokenizer=tokenizer, chat_template=template, chat_template_kwargs={}, _is_vlm=False
    )
    said = [{"role": "tool", "name": "add", "tool_call_id": f"call0000{n}", "content": f"it's {n}"} for n in range(2)]
    chat = conversation(tokenizer, row_of(tokenizer, toolbox)["prompt"], {"tools": toolbox.schemas})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for number in (1, 2):
        theirs = GRPOTrainer._get_tool_suffix_ids(trainer, said[:number])
        assert between(chat, [5, end], said[:number]) == theirs
        assert between(chat, [5], said[:number]) == [end, *theirs]  # a model that stopped with another token


def test_several_calls_in_one_turn_are_answered_in_order(tokenizer, box):
    text = "let me see\n" + called("times", a=4, b=5) + "\n" + called("fail", why="no") + "\n" + called("add", a=1, b=1)
    (done,), _ = talk(tokenizer, box("add", "times", "fail"), [[text, "done"]])
    assert outputs(done) == ["20", '{"error": "ValueError: no"}', "2"]
    assert (done.calls, done.failures) == (3, 1)
    assert done.messages[0]["content"] == "let me see"
    assert [call["function"]["name"] for call in done.messages[0]["tool_calls"]] == ["times", "fail", "add"]


def test_conversations_go_on_by_themselves_and_keep_their_numbers(tokenizer, box):
    config, toolbox = box("add")
    rows = [row_of(tokenizer, toolbox, group=3), row_of(tokenizer, toolbox, "and 4 plus 4?", group=4)]
    texts = {6: ["5"], 7: [called("add", a=2, b=3), "yes, 5"], 8: [called("add", a=4, b=4)] * 2 + ["8"], 9: ["eight"]}
    done, script = talk(tokenizer, (config, toolbox), texts, rows, generations=2)
    assert [each.turns for each in done] == [1, 2, 3, 1]
    assert [each.messages[-1]["content"] for each in done] == ["5", "yes, 5", "8", "eight"]
    assert [[request.number for request in requests] for requests, _ in script.asked] == [[6, 7, 8, 9], [7, 8], [8]]
    seeds = [sampling.seed for _, sampling in script.asked]
    assert seeds[0] == 7 and len(set(seeds)) == 3
    again, _ = talk(tokenizer, (config, toolbox), texts, rows, generations=2)
    assert again == done
    found = toolbox.metrics(done)
    assert [value for _, value in found["tools/call_frequency"].parts] == [3, 4]
    assert [value for _, value in found["tools/failure_frequency"].parts] == [0, 3]


def test_ranks_stay_in_step(tokenizer, box):
    config, toolbox = box("add")
    steps = []

    def more(here):
        steps.append(here)
        return len(steps) < 4  # another rank has three turns

    script = Script(tokenizer, [[called("add", a=2, b=3), "5"]])
    rows = [row_of(tokenizer, toolbox)]
    sampling = Sampling(max_new_tokens=400, seed=None)
    (done,) = run_episodes(rows, 1, script, sampling, tokenizer, config, toolbox, more)
    assert steps == [True, True, False, False] and [len(requests) for requests, _ in script.asked] == [1, 1, 0]
    assert done.turns == 2
    steps.clear()
    assert run_episodes([], 2, Script(tokenizer, []), sampling, tokenizer, config, toolbox, more) == []
    assert steps == [False] * 4


def test_noise_differs_from_turn_to_turn_and_the_first_turn_is_a_plain_completion():
    sampling = Sampling(max_new_tokens=3, seed=11)
    assert of_turn(sampling, 0) == sampling
    assert of_turn(sampling, 1) == of_turn(sampling, 1) != of_turn(sampling, 2)
    assert of_turn(Sampling(max_new_tokens=3), 2).seed is None


# ---------------------------------------------------------------- what goes wrong


def test_a_tool_that_hangs_is_given_up(tokenizer, box):
    text = called("hang") + called("add", a=1, b=2)
    (done,), _ = talk(tokenizer, box("hang", "add", tool_timeout=0.2), [[text, "pity"]])
    assert outputs(done) == ['{"error": "took longer than 0.2 s"}', "3"]
    assert (done.failures, done.messages[-1]["content"]) == (1, "pity")


def test_unknown_tools_and_wrong_arguments_are_said_to_the_model(tokenizer, box):
    text = called("ad", a=1) + called("add", a=1) + called("add", a="x", b=[1]) + called("_answer") + called("reset")
    (done,), _ = talk(
        tokenizer,
        box("add", environment="tools.py:Counter"),
        [[text, "sorry"]],
        [row_of(tokenizer, box("add")[1], start=0)],
    )
    errors = [json.loads(each)["error"] for each in outputs(done)]
    assert errors[0] == "there is no tool 'ad'; did you mean 'add'?"
    assert "missing 1 required positional argument: 'b'" in errors[1] and "TypeError" in errors[2]
    assert errors[3].startswith("there is no tool '_answer'") and errors[4].startswith("there is no tool 'reset'")
    assert done.failures == done.calls == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1,}}</tool_call>', "this call can't be read: "),
        ("<tool_call>add(1, 2)</tool_call>", "this call can't be read: Expecting value"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'can\'t be read: expected {"name": ..., "arguments": {...}}'),
        ('<tool_call>{"name": "add", "arguments": [1, 2]}</tool_call>', 'expected {"name": ..., "arguments": {...}}'),
        ('<tool_call>["add"]</tool_call>', 'expected {"name": ..., "arguments": {...}}'),
        ('<tool_call>{"name": "add", "arguments": "{1"}</tool_call>', "this call can't be read: "),
        ('so: <tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}', "can't be read: </tool_call> is missing"),
    ],
)
def test_a_malformed_call_is_said_to_the_model(tokenizer, box, text, expected):
    (done,), _ = talk(tokenizer, box("add"), [[text, "sorry"]])
    (output,) = outputs(done)
    assert expected in json.loads(output)["error"]
    assert (done.calls, done.failures, done.turns) == (1, 1, 2)
    assert "tool_calls" not in done.messages[0] and done.messages[0]["content"] in (text, "")


def test_arguments_may_be_json_in_json_and_may_be_left_out(tokenizer, box):
    text = '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}</tool_call><tool_call>{"name": "hang"}'
    (done,), _ = talk(tokenizer, box("add", "hang", tool_timeout=0.3), [[text + "</tool_call>", "ok"]])
    assert outputs(done) == ["3", '{"error": "took longer than 0.3 s"}']


def test_a_call_that_is_only_thought_of_is_not_made(tokenizer, box):
    for text in (f"<think>maybe {called('add', a=1, b=2)}</think>no", f"<think>maybe {called('add', a=1, b=2)}"):
        (done,), _ = talk(tokenizer, box("add"), [[text]])
        assert (done.turns, done.calls, done.messages) == (1, 0, [{"role": "assistant", "content": text}])
    (done,), _ = talk(tokenizer, box("add"), [[f"<think>hm</think>{called('add', a=1, b=2)}", "3"]])
    assert outputs(done) == ["3"] and done.messages[0]["content"] == "<think>hm</think>"


@pytest.mark.parametrize(("opened", "closing"), [("<think>\n", "</think>"), ("[THINK]", "[/THINK]")])
def test_a_call_within_thoughts_that_the_prompt_opened_is_not_made(opened, closing):
    """The completion has no beginning of them."""
    call = called("add", a=1, b=2)
    assert by_tags(f"maybe {call}", opened) == ({"role": "assistant", "content": f"maybe {call}"}, [])
    message, calls = by_tags(f"maybe {call}{closing}\n{call}", opened)
    assert len(calls) == 1 and message["content"] == f"maybe {call}{closing}"
    assert len(by_tags(f"maybe {call}")[1]) == len(by_tags(f"maybe {call}", "<answer>")[1]) == 1


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [0, 1, 2, None])
def test_turns_with_calls_are_limited(tokenizer, box, limit):
    texts = [[called("add", a=1, b=turn) for turn in range(3)] + ["enough"]]
    (done,), _ = talk(tokenizer, box("add", max_tool_calling_iterations=limit), texts)
    rounds = 3 if limit is None else limit
    assert outputs(done) == [str(1 + turn) for turn in range(rounds)]
    assert (done.turns, done.calls, done.finish_reason) == (rounds + 1, rounds, "stop")
    assert ("tool_calls" in done.messages[-1]) == (limit is not None)  # the call that nobody answered


def test_a_conversation_is_cut_where_its_tokens_are_used_up(tokenizer, box):
    call, end = called("add", a=2, b=3), "<|im_end|>"
    first = len(tokenizer(call + end)["input_ids"])
    (whole,), _ = talk(tokenizer, box("add"), [[call, "it is 5"]])
    between_turns = whole.sampled.count(False)
    # in the first turn: no call is made of what was cut
    (done,), _ = talk(tokenizer, box("add"), [[call, "it is 5"]], longest=first - 1)
    assert (done.finish_reason, done.turns, done.calls, len(done.token_ids)) == ("length", 1, 0, first - 1)
    # in what the tool says: it is left out as a whole, in tokens and messages
    for longest in (first, first + 3, first + between_turns):
        (done,), _ = talk(tokenizer, box("add"), [[call, "it is 5"]], longest=longest)
        assert (done.finish_reason, done.turns, done.calls) == ("length", 1, 1)
        assert len(done.token_ids) == first and all(done.sampled) and outputs(done) == []
    # in the last turn
    (done,), _ = talk(tokenizer, box("add"), [[call, "it is 5"]], longest=first + between_turns + 2)
    assert (done.finish_reason, done.turns, len(done.token_ids)) == ("length", 2, first + between_turns + 2)
    assert done.sampled[-2:] == [True, True] and done.sampled[-3] is False
    assert whole.token_ids[: len(done.token_ids)] == done.token_ids


def test_a_result_that_is_longer_than_a_completion_may_be_ends_it(tokenizer, box):
    (done,), script = talk(tokenizer, box("recite"), [[called("recite", length=1000), "never said"]], longest=100)
    assert done.finish_reason == "length" and len(script.asked) == 1 and all(done.sampled)


def test_no_prompt_is_longer_than_the_model_has_positions(tokenizer, box):
    config, toolbox = box("add")
    row = row_of(tokenizer, toolbox)
    texts = [[called("add", a=2, b=3), "it is 5"]]
    (whole,), script = talk(tokenizer, (config, toolbox), texts, [row])
    second = len(script.asked[1][0][0].prompt_ids)
    (done,), script = talk(tokenizer, (config, toolbox), texts, [row], positions=second)
    assert (done.finish_reason, done.turns, len(script.asked)) == ("length", 1, 1)
    (done,), _ = talk(tokenizer, (config, toolbox), texts, [row], positions=second + 1)
    assert done == whole


# ---------------------------------------------------------------- environments


def test_each_completion_has_an_environment_of_its_own(tokenizer, box):
    config, toolbox = box(environment="tools.py:Counter")
    rows = [row_of(tokenizer, toolbox, start=0, group=0), row_of(tokenizer, toolbox, start=5, group=1, answer="x")]
    texts = [
        [called("increase", by=1), called("increase", by=1), "2"],
        ["nothing"],
        [called("increase", by=10) + called("increase", by=20), "35"],
        [called("increase", by=1000), "oh"],
    ]
    done, script = talk(tokenizer, (config, toolbox), texts, rows, generations=2)
    assert [outputs(each) for each in done] == [["1", "2"], [], ["15", "35"], ["1005"]]
    assert [each.reward for each in done] == [0.2, 0.0, 3.5, None]
    assert [each.reward_problem for each in done] == ["", "", "", "OverflowError: too far"]
    # what reset says goes to the end of the user's message, and the row is left as it was
    assert [each.prompt_ids == [] for each in done] == [True, True, False, False]
    assert done[2].prompt[-1]["content"] == "what is 2 plus 3? The counter is at 5."
    assert "what is 2 plus 3? The counter is at 5.<|im_end|>" in tokenizer.decode(done[2].prompt_ids)
    assert rows[1]["prompt"][-1]["content"] == "what is 2 plus 3?"
    assert script.asked[0][0][2].prompt_ids == done[2].prompt_ids == done[3].prompt_ids


def test_reset_is_given_the_columns_that_it_takes_and_must_not_fail(tokenizer, box):
    config, toolbox = box("add")
    Path("worlds.py").write_text(
        TOOLS.replace("start, **columns", "start")
        + "\nclass Bad(Counter):\n    def reset(self):\n        return 3\n"
        + "\nclass Worse(Counter):\n    async def reset(self, start=1):\n        raise OSError('no world')\n"
    )
    config, toolbox = box(environment="worlds.py:Counter")
    done, _ = talk(tokenizer, (config, toolbox), [["hi"]], [row_of(tokenizer, toolbox, start=2, other=1)])
    assert done[0].reward == 0.2
    with pytest.raises(DataError, match="parameter 'start' of reset is no column of the data; did you mean 'star'"):
        talk(tokenizer, (config, toolbox), [["hi"]], [row_of(tokenizer, toolbox, star=2)])
    for name, problem in (("Bad", "it returned int '3', expected text or None"), ("Worse", "OSError: no world")):
        config, toolbox = box(environment=f"worlds.py:{name}")
        with pytest.raises(FtHostError, match=f"environment {name}: reset failed: {problem}"):
            talk(tokenizer, (config, toolbox), [["hi"]], [row_of(tokenizer, toolbox)])


def test_text_of_reset_goes_into_content_of_parts_too_and_needs_a_user(tokenizer, box):
    Path("worlds.py").write_text(TOOLS)
    parts = chat_tokenizer(
        (TEMPLATES / "qwen2_5.jinja")
        .read_text(encoding="utf-8")
        .replace(
            "'\\n' + message.content + '<|im_end|>'",
            "'\\n' + (message.content if message.content is string else message.content | map(attribute='text') | join)"
            " + '<|im_end|>'",
        ),
        eos_token="<|im_end|>",
    )
    config, toolbox = box(environment="tools.py:Counter")
    row = row_of(parts, toolbox, start=4)
    row["prompt"] = [{"role": "user", "content": [{"type": "text", "text": "go."}]}]
    (done,), _ = talk(parts, (config, toolbox), [["hi"]], [row])
    assert "go. The counter is at 4.<|im_end|>" in parts.decode(done.prompt_ids)
    row["prompt"] = [{"role": "system", "content": "go."}]
    with pytest.raises(DataError, match="the prompt has no user message"):
        talk(parts, (config, toolbox), [["hi"]], [row])


# ---------------------------------------------------------------- prompts and templates


def test_prompts_show_the_tools_whatever_the_row_was_prepared_with(tokenizer, box):
    config, toolbox = box("add")
    row = row_of(tokenizer, toolbox)
    bare = chat_ids(conversation(tokenizer, row["prompt"], {}), ask=True)
    (done,), script = talk(tokenizer, (config, toolbox), [["5"]], [row | {"prompt_ids": bare}])
    assert done.prompt_ids == row["prompt_ids"] == script.asked[0][0][0].prompt_ids
    assert "Adds two numbers." in tokenizer.decode(done.prompt_ids)


def test_arguments_of_the_template_are_the_configs_and_a_rows_own_come_first(box):
    tokenizer = tokenizer_of("qwen3")
    config, toolbox = box("add", chat_template_kwargs={"enable_thinking": False})
    rows = [
        row_of(tokenizer, toolbox, group=0),
        row_of(tokenizer, toolbox, group=1, chat_template_kwargs={"enable_thinking": True}),
    ]
    texts = [[called("add", a=1, b=1), "2"]] * 2
    done, script = talk(tokenizer, (config, toolbox), texts, rows)
    starts = ["<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_start|>assistant\n"]
    for requests, _ in script.asked:
        for request, start in zip(requests, starts, strict=True):
            assert tokenizer.decode(request.prompt_ids).endswith(start)


def test_what_tools_cannot_be_used_with_is_refused(tokenizer, box):
    config, toolbox = box("add")
    row = row_of(tokenizer, toolbox)
    for changed, message in (
        ({"prompt": "what is 2 plus 3?"}, "tools need conversations: .* found the text 'what is 2 plus 3"),
        ({"columns": {"tools": ["search"]}}, "column tools: the run sets its own tools"),
    ):
        with pytest.raises(DataError, match=message):
            talk(tokenizer, (config, toolbox), [["hi"]], [row | changed])
    chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    ask = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    shown = "{% if tools %}{{ tools }}{% endif %}"
    calls = chatml.replace("m.content", "m.content if m.role != 'tool'").replace("<|im_end|>\n{% endfor %}", "")
    calls += "{{ m.tool_calls }}<|im_end|>"
    said = calls.replace(" if m.role != 'tool'", "")
    for template, message in (
        (None, "the tokenizer has no chat template"),
        (chatml + ask, "doesn't show the tools to the model"),
        (shown + chatml + ask, "the chat template can't render tool calls"),
        (shown + calls + "\n{% endfor %}" + ask, "doesn't show tool results to the model"),
        (shown + said + "\n{% endfor %}" + ask, "which can't be read; expected <tool_call>"),
        (
            shown + said.replace("<|im_end|>", ".").replace("<|im_start|>", "\n") + "{% endfor %}",
            "without a special token",
        ),
    ):
        other = chat_tokenizer(template, eos_token="<|im_end|>")
        with pytest.raises(ConfigError, match=message):
            run_episodes(
                [], 1, Script(other, []), Sampling(max_new_tokens=9), other, config, toolbox, lambda here: False
            )


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "llama3_1", "gptoss", "glm4moe"])
def test_other_forms_of_calls_are_read_by_the_tokenizers_response_template(name, box):
    """The forms of published templates, with the response templates that TRL has for them."""
    from trl.chat_template_utils import add_response_schema

    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(name)
    config, toolbox = box("add")
    if name != "qwen3":
        with pytest.raises(ConfigError, match="which can't be read"):
            check_template(tokenizer, toolbox.schemas, {})
    tokenizer.chat_template = template
    add_response_schema(tokenizer)
    check_template(tokenizer, toolbox.schemas, {})
    # what the template would write for a call, as a model's turn
    row = row_of(tokenizer, toolbox)
    call = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
    talked = [
        *row["prompt"],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "add", "tool_call_id": "call00000", "content": "5"},
    ]
    whole = chat_ids(conversation(tokenizer, talked, {"tools": toolbox.schemas}), ask=True)
    chat = conversation(tokenizer, row["prompt"], {"tools": toolbox.schemas})
    follows = between(chat, [], talked[-1:])  # with the end of turn
    assert whole[-len(follows) :] == follows
    start, stop = shared(row["prompt_ids"], whole), len(whole) - len(follows) + 1
    turn = Completion(token_ids=whole[start:stop], finish_reason="stop")
    message, calls = read_turn(turn, whole[:start], tokenizer, toolbox.schemas, first=0)
    assert [(each.name, each.arguments, each.problem) for each in calls] == [("add", {"a": 2, "b": 3}, "")]
    assert message["tool_calls"][0]["function"] == call["function"]
    assert toolbox.caller.run([toolbox.answering(calls, None)])[0][0].value == "5"


def test_a_template_that_takes_one_call_a_turn_may_still_show_several_results(box):
    tokenizer = tokenizer_of("llama3_1")
    _, toolbox = box("add")
    chat = conversation(tokenizer, [{"role": "user", "content": "a"}], {"tools": toolbox.schemas})
    said = [{"role": "tool", "name": "add", "tool_call_id": f"call0000{n}", "content": str(n)} for n in range(2)]
    text = tokenizer.decode(between(chat, [tokenizer.eos_token_id], said))
    header = "<|start_header_id|>ipython<|end_header_id|>\n\n"
    results = [f'{header}"{n}"<|eot_id|>' for n in range(2)]
    assert text == "".join(results) + "<|start_header_id|>assistant<|end_header_id|>\n\n"
