"""Built-in rewards: the same numbers as TRL's, and what is said where they can't be made."""

from __future__ import annotations

import importlib.util
import itertools
import random
from typing import Any

import pytest
import trl.rewards

from ft_host.config import RunConfig
from ft_host.config.builtin_rewards import BUILTIN, check_arguments, made_to_measure
from ft_host.config.paths import path_problems
from ft_host.config.rollout import RolloutConfig, RolloutPlan
from ft_host.errors import ConfigError
from ft_host.generation.thoughts import opened_by
from ft_host.rewards import Scoring, describe, find_reward, load_rewards, score

maths = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


SOLUTIONS = [
    r"\frac{1}{3}",
    "12",
    "$x = 4$",
    r"\boxed{7}",
    "no mathematics",
    "",
    r"\text{A}",
    r"$\{1, 2\}$",
    "1,000",
    "50\\%",
]
ANSWERS = [
    r"so \boxed{\frac{1}{3}}",
    r"so \boxed{\frac{2}{6}}",
    r"$0.3333$",
    "12",
    r"\boxed{12}",
    "$12$",
    r"the answer is $x=4$",
    r"\boxed{4}",
    "",
    r"\boxed{}",
    r"\boxed{7} or \boxed{8}",
    r"\boxed{\text{A}}",
    r"\boxed{\{2, 1\}}",
    r"\boxed{1000}",
    r"\boxed{\frac{1}",
    r"$\frac12$, I mean \boxed{12}",
    r"\boxed{50\%}",
    r"\boxed{0.5}",
    r"\boxed{12\text{ cm}}",
]
PAIRS = list(itertools.product(ANSWERS, SOLUTIONS))
THOUGHTS = [
    "",
    "<think> so \\boxed{12} </think>",
    "<think>never ends \\boxed{12}",
    "a </think> b </think>",
    "[/R]",
    "a </think> [/R]",
]


def same(ours: Any, theirs: Any, **given: Any) -> dict[str, list[Any]]:
    """Both give the same rewards and log the same columns; ours of texts as of messages. Gives the columns."""
    logged: list[dict[str, list[Any]]] = [{}, {}]
    expected = theirs(**given, log_extra=logged[0].__setitem__)
    takes = set(find_parameters(ours))
    arguments = {name: value for name, value in (given | {"log_extra": logged[1].__setitem__}).items() if name in takes}
    assert ours(**arguments) == expected
    assert logged[1] == (logged[0] if "log_extra" in takes else {})
    if "completions" in takes:
        texts = [each[0]["content"] for each in given["completions"]]
        assert ours(**(arguments | {"completions": texts})) == expected
    assert any(value is not None for value in expected)
    return logged[1]


def find_parameters(call: Any) -> list[str]:
    import inspect

    return list(inspect.signature(call).parameters)


# ---------------------------------------------------------------- the same as TRL's


@maths
def test_accuracy():
    completions, solutions = [say(answer) for answer, _ in PAIRS], [solution for _, solution in PAIRS]
    found = same(
        made_to_measure("accuracy_reward", {}), trl.rewards.accuracy_reward, completions=completions, solution=solutions
    )
    assert set(found) == {"solution", "gold_parsed", "answer_parsed"}
    rewards = made_to_measure("accuracy_reward", {})(completions, solutions)
    assert {0.0, 1.0, None} == set(rewards)


@maths
@pytest.mark.parametrize("delimiters", [None, ["</think>"], ["[/R]", "</think>"]])
def test_accuracy_after_reasoning(delimiters):
    texts = [thought + answer for thought in THOUGHTS for answer in ANSWERS[:6]]
    ours = made_to_measure("reasoning_accuracy_reward", {"reasoning_delimiters": delimiters})

    def theirs(**given):
        return trl.rewards.reasoning_accuracy_reward(**given, reasoning_delimiters=delimiters)

    for solution in (r"\frac{1}{3}", "12", "no mathematics"):
        same(ours, theirs, completions=[say(text) for text in texts], solution=[solution] * len(texts))


@maths
@pytest.mark.parametrize("given", [{"max_len": 100}, {"max_len": 7, "min_value_wrong": -3, "max_value_correct": 0.25}])
def test_cosine_scaled(given):
    chosen = random.Random(0).sample(PAIRS, 60)
    same(
        made_to_measure("get_cosine_scaled_reward", given),
        trl.rewards.get_cosine_scaled_reward(**given),
        completions=[say(answer) for answer, _ in chosen],
        solution=[solution for _, solution in chosen],
        completion_ids=[[1] * (3 * i) for i in range(60)],
    )


def test_think_format():
    parts = ["<think>", "</think>", "\n", "answer", " "]
    texts = ["".join(each) for count in range(6) for each in itertools.product(parts, repeat=count)]
    texts += ["<think>\nThis.\n</think>\nThat.", "<think></think>", "<think>a</think>b<think>c</think>"]
    same(
        made_to_measure("think_format_reward", {}),
        trl.rewards.think_format_reward,
        completions=[say(text) for text in texts],
    )


def test_thoughts_that_the_prompt_opened_count():
    """As R1's template, Qwen3.5's and Nemotron's do it: the prompt ends with the tag, the completion has its end."""
    texts = ["hm</think>42", "hm 42", "<think>hm</think>42", "hm</think>42"]
    opened = ["<think>\n", "<think>\n", "", ""]
    call = made_to_measure("think_format_reward", {})
    assert call(completions=[say(text) for text in texts], opened_by_prompt=opened) == [1.0, 0.0, 1.0, 0.0]
    assert call(completions=["<think>hm</think>42"], opened_by_prompt=["<assistant>"]) == [1.0], (
        "a tag of something else"
    )
    custom = made_to_measure("think_format_reward", {"opening": "[PLAN]", "closing": "[/PLAN]"})
    assert custom(
        completions=["a[/PLAN]b", "[PLAN]a[/PLAN]b", "<think>a</think>"], opened_by_prompt=["[PLAN]", "", ""]
    ) == [1.0, 1.0, 0.0]


class Decoder:
    """Tokens are characters."""

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<｜Assistant｜><think>\n", "<think>\n"),
        ("[/INST][THINK]", "[THINK]"),
        ("<|im_start|>assistant\n<seed:think>", "<seed:think>"),
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("Is 3 < 4?", ""),
        ("", ""),
    ],
)
def test_what_a_prompt_opens(prompt, opened):
    assert opened_by([ord(letter) for letter in prompt], Decoder()) == opened


def test_functions_that_ask_are_given_what_prompts_opened():
    def asks(completions, opened_by_prompt):
        return [float(each == "<think>\n") for each in opened_by_prompt]

    def others(completions, **columns):
        assert "opened_by_prompt" not in columns
        return [0.0] * len(completions)

    given = Scoring(
        prompts=["", ""],
        completions=["a", "b"],
        completion_ids=[[1], [2]],
        columns={},
        trainer_state=None,
        opened_by_prompt=["<think>\n", ""],
    )
    assert score([describe("asks", asks), describe("others", others)], given) == [[1.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("given", [{}, {"ngram_size": 1}, {"ngram_size": 2, "max_penalty": -0.3}, {"max_penalty": 0}])
def test_repetition_penalty(given):
    draw = random.Random(1)
    ids = [[draw.randrange(1 + i % 5) for _ in range(draw.randrange(12))] for i in range(300)]
    same(
        made_to_measure("get_repetition_penalty_reward", given),
        trl.rewards.get_repetition_penalty_reward(**given),
        completion_ids=ids,
    )


@pytest.mark.parametrize("size, cache", [(100, 20), (10, 10), (10, 0), (1, 1)])
def test_soft_overlong_punishment(size, cache):
    given = {"max_completion_len": size, "soft_punish_cache": cache}
    same(
        made_to_measure("get_soft_overlong_punishment", given),
        trl.rewards.get_soft_overlong_punishment(**given),
        completion_ids=[[1] * length for length in range(120)],
    )


@maths
def test_metrics_have_the_names_that_trl_gives_them():
    needed = {
        "get_cosine_scaled_reward": {"max_len": 8},
        "get_soft_overlong_punishment": {"max_completion_len": 8, "soft_punish_cache": 2},
    }
    for spec, builtin in BUILTIN.items():
        theirs = getattr(trl.rewards, spec)
        theirs = theirs(**needed.get(spec, {})) if spec.startswith("get_") else theirs
        assert builtin.name == theirs.__name__ == find_reward(spec, RunConfig(), arguments=needed).name
    assert set(BUILTIN) == {name for names in trl.rewards._import_structure.values() for name in names}


# ---------------------------------------------------------------- ours alone


def test_of_several_messages_the_last_one_counts():
    turns = [{"role": "assistant", "content": "<think>a</think> look"}, {"role": "tool", "content": "b"}, *say("c")]
    call = made_to_measure("think_format_reward", {})
    assert call([turns, turns[::-1]]) == [0.0, 1.0]
    assert call([[{"role": "assistant", "tool_calls": []}]]) == [0.0]


@maths
def test_in_another_thread_without_time_limits():
    from concurrent.futures import ThreadPoolExecutor

    call = made_to_measure("accuracy_reward", {})
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(call, [r"\boxed{12}"], ["12"]).result() == [1.0]


def test_they_score_held_out_rows_too():
    config = RunConfig(model="m", dataset="d", eval_dataset="e", eval_reward=["think_format_reward"])
    assert not [problem for problem in path_problems(config, {}) if problem[0] == "eval_reward"]
    given = Scoring(prompts=[""], completions=["<think></think>"], completion_ids=[[1]], columns={}, trainer_state=None)
    assert score(load_rewards(config), given) == [[1.0]]


# ---------------------------------------------------------------- refusals

PENALTY, OVERLONG = "get_repetition_penalty_reward", "get_soft_overlong_punishment"


@pytest.mark.parametrize(
    ("spec", "given", "said"),
    [
        (PENALTY, {"ngram": 3}, rf"^reward_kwargs.{PENALTY}: unknown argument 'ngram'; did you mean 'ngram_size'\?"),
        (PENALTY, {"n": 3}, "unknown argument 'n'; there are: max_penalty, ngram_size"),
        (PENALTY, {"ngram_size": "3"}, rf"^reward_kwargs.{PENALTY}.ngram_size: found '3', expected a whole number"),
        (PENALTY, {"ngram_size": 2.5}, "ngram_size: found 2.5, expected a whole number"),
        (PENALTY, {"ngram_size": True}, "ngram_size: found True, expected a whole number"),
        (PENALTY, {"ngram_size": 0}, "ngram_size: found 0, expected 1 or more"),
        (PENALTY, {"max_penalty": 0.5}, rf"^reward_kwargs.{PENALTY}.max_penalty: found 0.5, expected 0 or less"),
        (PENALTY, {"max_penalty": float("nan")}, "max_penalty: found nan, expected a number"),
        (
            OVERLONG,
            {},
            f"^reward: {OVERLONG} needs max_completion_len, soft_punish_cache; set reward_kwargs.{OVERLONG}",
        ),
        (OVERLONG, {"max_completion_len": 4, "soft_punish_cache": 5}, "soft_punish_cache: found 5, expected 0 to 4"),
        ("accuracy_reward", {"tag": "a"}, "unknown argument 'tag'; it takes none"),
        ("think_format_reward", {"opening": 3}, "opening: found 3, expected a text"),
    ],
)
def test_arguments_that_do_not_fit(spec, given, said):
    with pytest.raises(ConfigError, match=said):
        made_to_measure(spec, given)


@maths
def test_delimiters_must_be_texts():
    for wrong in ("</think>", [], [1], [""]):
        with pytest.raises(ConfigError, match="reasoning_delimiters: found .*, expected a list of texts"):
            made_to_measure("reasoning_accuracy_reward", {"reasoning_delimiters": wrong})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"get_repetition_penalty": {}},
            rf"'get_repetition_penalty' is no built-in reward; did you mean '{PENALTY}'\?",
        ),
        ({OVERLONG: {}}, rf"^reward_kwargs: {OVERLONG} is not one of the run's rewards \({PENALTY}, mine.py:f\)"),
        ({PENALTY: {"ngram": 3}}, rf"^reward_kwargs.{PENALTY}: unknown argument 'ngram'; did you mean 'ngram_size'\?"),
        ({PENALTY: 3}, rf"^reward_kwargs.{PENALTY}: found 3, expected {{argument: value}}"),
    ],
)
def test_arguments_of_what_is_not_there(given, said):
    with pytest.raises(ConfigError, match=said):
        check_arguments(given, [PENALTY, "mine.py:f"])
    check_arguments({PENALTY: {}}, [PENALTY, "mine.py:f"])
    fields = {"model": "m", "dataset": "d", "eval_dataset": "e", "reward": ["mine.py:f"], "eval_reward": [PENALTY]}
    PlannedConfig(**fields, reward_kwargs={PENALTY: {"ngram_size": 2}}).check()
    with pytest.raises(ConfigError, match="^reward_kwargs"):
        PlannedConfig(**fields, reward_kwargs=given).check()


class PlannedConfig(RolloutConfig):
    def rollout_plan(self, processes):
        return RolloutPlan(prompts=1, generations=1, steps=1, passes=1)


def test_without_math_verify_it_is_said_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "math_verify" else found(name))
    said = r"accuracy_reward needs math-verify, which isn't installed: pip install 'ft-host\[math\]'"
    with pytest.raises(ConfigError, match="^reward: " + said):
        made_to_measure("accuracy_reward", {})
    config = RunConfig(model="m", dataset="d", eval_dataset="e", eval_reward=["accuracy_reward"])
    with pytest.raises(ConfigError, match="^eval_reward: " + said):
        load_rewards(config)
    [(field, problem)] = [found for found in path_problems(config, {}) if found[0] == "eval_reward"]
    assert problem == said.replace("\\", "")


def test_a_name_that_is_nearly_right():
    config = RunConfig(model="m", dataset="d", eval_dataset="e", eval_reward=["think_fromat_reward"])
    [(field, problem)] = [found for found in path_problems(config, {}) if found[0] == "eval_reward"]
    assert (
        problem.startswith("found the text 'think_fromat_reward', expected")
        and "did you mean think_format_reward?" in problem
    )
    with pytest.raises(ConfigError, match="no folder; did you mean 'think_format_reward'"):
        load_rewards(config)
