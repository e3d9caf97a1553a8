"""Reward functions: how they are found, called and held to their word, and what evaluation makes of them."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ft_host.config import RunConfig
from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.rewards import Scoring, check_columns, describe, load_reward, load_rewards, score


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def scoring(**fields) -> Scoring:
    given = {
        "prompts": ["a", "b", "c"],
        "completions": ["x", "yy", "zzz"],
        "completion_ids": [[1], [2, 2], [3, 3, 3]],
        "columns": {"answer": ["x", "n", "zzz"], "level": [1, 2, 3]},
        "trainer_state": SimpleNamespace(global_step=7),
    }
    return Scoring(**(given | fields))


def run_one(function, **fields) -> list[float | None]:
    return score([describe("mine", function)], scoring(**fields))[0]


# ---------------------------------------------------------------- finding


def test_a_function_is_found_in_a_file_and_in_a_module(monkeypatch):
    write("scores.py", "SHARED = []\ndef short(completions):\n    return [float(len(c) < 2) for c in completions]\n")
    function = load_reward("scores.py:short")
    assert function.name == "short"
    assert score([function], scoring()) == [[1.0, 0.0, 0.0]]
    Path("folder").mkdir()
    write("folder/other.py", "def long(completions):\n    return [float(len(c) > 2) for c in completions]\n")
    monkeypatch.syspath_prepend(str(Path("folder").resolve()))
    assert score([load_reward("other:long"), load_reward("folder/other.py:long")], scoring()) == [[0.0, 0.0, 1.0]] * 2


def test_a_file_named_twice_is_read_once():
    write("scores.py", "import sys\nsys.argv.append('read')\ndef a(prompts): ...\ndef b(prompts): ...\n")
    before = sys.argv.count("read")
    functions = load_rewards(
        RunConfig(model="m", dataset="d", eval_dataset="e", eval_reward=["scores.py:a", "scores.py:b"])
    )
    assert [function.name for function in functions] == ["a", "b"]
    assert sys.argv.count("read") == before + 1
    sys.argv.remove("read")


def test_a_class_in_a_reward_file_may_be_a_dataclass():
    # dataclasses look their module up in sys.modules
    write(
        "scores.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Length:\n    most:"
        " int\n    def __call__(self, completions):\n        return [float(len(c) <= self.most) for c in"
        " completions]\nat_most_two = Length(2)\n",
    )
    assert score([load_reward("scores.py:at_most_two")], scoring()) == [[1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("scores.py", r"eval_reward: 'scores.py' is not of the form file.py:function"),
        ("scores.py:", r"is not of the form"),
        (":exact_match", r"is not of the form"),
        ("scors.py:exact_match", r"there is no file scors.py; did you mean 'scores.py'\?"),
        ("scores.py:exact_mach", r"'exact_mach' is not defined; did you mean 'exact_match'\?"),
        ("scores.py:zzz", r"'zzz' is not defined; functions in it: exact_match, other"),
        ("scores.py:LIMIT", r"'LIMIT' is not a function"),
        ("scores:exact_match", r"module 'scores' can't be imported: ModuleNotFoundError.*scores.py:…"),
        ("broken.py:f", r"broken.py can't be imported: ZeroDivisionError: division by zero \(.*broken.py, line 2\)"),
        ("typo.py:f", r"typo.py can't be imported: SyntaxError"),
        ("only.py:f", r"positional-only"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(spec, message):
    write(
        "scores.py",
        "from json import dumps\nLIMIT = 3\ndef exact_match(completions): ...\ndef other(completions): ...\n",
    )
    write("broken.py", "x = 1\ny = x / 0\n")
    write("typo.py", "def f(:\n")
    write("only.py", "def f(completions, /): ...\n")
    with pytest.raises(ConfigError, match=message):
        load_reward(spec)


def test_two_functions_of_one_name_are_refused():
    write("one.py", "def f(completions): ...\n")
    write("two.py", "def f(completions): ...\n")
    with pytest.raises(ConfigError, match="two rewards are called 'f'"):
        load_rewards(RunConfig(model="m", dataset="d", eval_dataset="e", eval_reward=["one.py:f", "two.py:f"]))


# ---------------------------------------------------------------- calling


def test_each_argument_is_passed_only_if_it_is_taken():
    seen = {}

    def all_of_trl(prompts, completions, completion_ids, *, trainer_state, log_extra, log_metric, **columns):
        seen["all"] = (prompts, completions, completion_ids, trainer_state.global_step, columns)
        return [0.0] * len(completions)

    def some(completions, level, missing="default"):
        seen["some"] = (completions, level, missing)
        return [0.0] * len(completions)

    def columns_only(**kwargs):
        seen["kwargs"] = sorted(kwargs)
        return [0.0] * 3

    score([describe(f.__name__, f) for f in (all_of_trl, some, columns_only)], scoring())
    assert seen["all"] == (
        ["a", "b", "c"],
        ["x", "yy", "zzz"],
        [[1], [2, 2], [3, 3, 3]],
        7,
        {"answer": ["x", "n", "zzz"], "level": [1, 2, 3]},
    )
    assert seen["some"] == (["x", "yy", "zzz"], [1, 2, 3], "default")
    assert seen["kwargs"] == [
        "answer",
        "completion_ids",
        "completions",
        "level",
        "log_extra",
        "log_metric",
        "prompts",
        "trainer_state",
    ]


def test_async_functions_run_together_even_inside_a_running_loop():
    import asyncio

    events = {}

    async def first(completions):
        events.setdefault("first", asyncio.Event()).set()
        await asyncio.wait_for(events.setdefault("second", asyncio.Event()).wait(), 5)
        return [1.0] * len(completions)

    async def second(completions):
        events.setdefault("second", asyncio.Event()).set()
        await asyncio.wait_for(events.setdefault("first", asyncio.Event()).wait(), 5)
        return [2.0] * len(completions)

    def plain(completions):
        return [float(threading.current_thread() is threading.main_thread())] * len(completions)

    functions = [describe(f.__name__, f) for f in (first, plain, second)]
    assert score(functions, scoring()) == [[1.0] * 3, [1.0] * 3, [2.0] * 3]
    events.clear()

    async def notebook():
        return score(functions, scoring())

    assert asyncio.run(notebook()) == [[1.0] * 3, [1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize(
    "given",
    [[1, None, 0.5], (1, None, 0.5), [True, None, np.float32(0.5)], [torch.tensor(1.0), None, torch.tensor(0.5)]],
)
def test_numbers_of_any_kind_become_floats(given):
    rewards = run_one(lambda completions: given)
    assert rewards == [1.0, None, 0.5]
    assert [type(reward) for reward in rewards] == [float, type(None), float]


def test_a_tensor_or_array_is_a_list_of_rewards():
    assert run_one(lambda completions: torch.tensor([1.0, 2.0, 3.0])) == [1.0, 2.0, 3.0]
    assert run_one(lambda completions: np.array([1.0, 2.0, 3.0])) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "returned, message",
    [
        ([1.0, 2.0], "returned 2 rewards for 3 completions"),
        (None, "returned NoneType None, expected a list of 3 rewards"),
        (1.0, "returned float 1.0, expected a list of 3"),
        ("abc", "returned str 'abc', expected a list"),
        ({"a": 1, "b": 2, "c": 3}, "returned dict"),
        ([1.0, "2.0", 3.0], "gave str '2.0' as reward 1, expected a finite number"),
        ([1.0, 2.0, math.nan], "gave float nan as reward 2"),
        ([1.0, [2.0], 3.0], r"gave list \[2.0\] as reward 1"),
        ([math.inf, 2.0, 3.0], "gave float inf as reward 0"),
    ],
)
def test_what_is_not_a_list_of_rewards_is_refused(returned, message):
    def careless(completions):
        return returned

    with pytest.raises(FtHostError, match=message) as caught:
        score([describe("careless", careless)], scoring())
    assert "reward function careless (" in str(caught.value)
    assert f"{Path(__file__).name}, line {careless.__code__.co_firstlineno})" in str(caught.value)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_function_that_raises_is_named_with_the_line(kind):
    write("bad.py", f"{kind} bad(completions):\n    x = 1\n    return [1 / (x - 1)]\n")
    with pytest.raises(
        FtHostError, match=r"reward function bad \(.*\) raised ZeroDivisionError.*bad.py, line 3"
    ) as caught:
        score([load_reward("bad.py:bad")], scoring())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_parameter_that_nothing_fills_is_refused_with_the_nearest_column():
    def needs(completions, anwser): ...

    with pytest.raises(DataError, match=r"needs: its parameter 'anwser' is neither.*did you mean 'answer'\?"):
        check_columns(describe("needs", needs), ["prompt", "answer"])
    with pytest.raises(DataError, match="its parameter 'anwser'"):
        score([describe("needs", needs)], scoring())
    with pytest.raises(DataError, match="column 'completions' of the data has the name of an argument"):
        check_columns(describe("needs", needs), ["completions", "anwser"])
    check_columns(describe("needs", needs), ["anwser"])


def test_functions_can_log_metrics_and_columns():
    def logs(completions, log_metric, log_extra):
        log_metric("length", 2)
        log_metric("length", torch.tensor(4.0))
        log_extra("upper", [c.upper() for c in completions])
        return [None] * len(completions)

    given = scoring()
    assert score([describe("logs", logs)], given) == [[None] * 3]
    assert given.metrics == {"length": [2.0, 4.0]}
    assert given.extra == {"upper": ["X", "YY", "ZZZ"]}


def test_what_cannot_be_logged_is_left_out_and_told():
    def wild(completions, log_metric, log_extra):
        log_metric("loss", "high")
        log_extra("one", ["a"])
        return [1.0] * len(completions)

    given = scoring()
    assert score([describe("wild", wild)], given) == [[1.0] * 3]
    assert (given.metrics, given.extra) == ({}, {})
    assert "gave str 'high' as log_metric('loss'), expected a number" in given.notes[0]
    assert "gave log_extra('one') 1 value, expected one for each of the 3 completions" in given.notes[1]
