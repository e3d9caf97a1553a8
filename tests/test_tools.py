"""Tools and environments: how they are found, described and refused, and how calls of them are made."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ft_grpo.config import GRPOConfig

from ft_host.errors import ConfigError, FtHostError
from ft_host.rollouts import tool_executor as calling
from ft_host.rollouts.tool_executor import ToolExecutor, ToolResult
from ft_host.rollouts.tools import Call, load_tools

HEAD = "from typing import Literal\n\n"
GOOD = '''
def add(a: int, b: int = 0) -> int:
    """Adds.

    Args:
        a: one
        b: other
    """
    return a + b
'''
ENVIRONMENT = '''
class Game:
    """A game."""

    size = 3

    def reset(self, **row): ...

    def move(self, to: Literal["left", "right"]) -> str:
        """Moves.

        Args:
            to: where
        """
        return to

    @staticmethod
    def rules() -> str:
        """Says the rules."""
        return "none"

    def _hidden(self): ...
'''


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text, tools=("add",), **fields):
    Path("mine.py").write_text(HEAD + text, encoding="utf-8")
    tools = [name if ":" in name else f"mine.py:{name}" for name in tools]
    return load_tools(GRPOConfig(model="m", dataset="d", reward=["r"], tools=tools, **fields))


def made(box, *calls, environment=None):
    calls = [Call(name=name, id="", arguments=arguments) for name, arguments in calls]
    return box.caller.run([box.answering(calls, environment)])[0]


def opened(box, columns):
    [[outcome]] = box.caller.run([[box.opening(columns)]])
    return box.opened(outcome)


def worth(box, *environments):
    return [outcome for [outcome] in box.caller.run([[box.scoring(each)] for each in environments])]


# ---------------------------------------------------------------- loading


def test_functions_are_described_by_signature_and_docstring():
    box = load(GOOD)
    assert (box.names, box.environment, box.rewards, box.caller.timeout) == (["add"], None, False, 60.0)
    (schema,) = box.schemas
    assert schema["function"]["name"] == "add" and schema["function"]["description"] == "Adds."
    assert schema["function"]["parameters"] == {
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"type": "integer", "description": "other"},
        },
    }
    assert made(box, ("add", {"a": 2})) == [ToolResult("2")]
    assert load_tools(GRPOConfig(model="m", dataset="d", reward=["r"])) is None


def test_public_methods_of_an_environment_are_tools():
    box = load(GOOD + ENVIRONMENT, environment="mine.py:Game")
    assert box.names == ["add", "move", "rules"] and not box.rewards
    assert [each["function"]["name"] for each in box.schemas] == box.names
    assert box.schemas[1]["function"]["parameters"]["properties"]["to"]["enum"] == ["left", "right"]
    game, added = opened(box, {"any": 1})
    assert added == ""
    assert made(box, ("move", {"to": "left"}), ("rules", {}), environment=game) == [
        ToolResult("left"),
        ToolResult("none"),
    ]
    assert load(ENVIRONMENT, tools=(), environment="mine.py:Game").names == ["move", "rules"]
    scored = ENVIRONMENT + "    def get_reward(self): ...\n"
    assert load(scored, tools=(), environment="mine.py:Game").rewards


@pytest.mark.parametrize(
    ("text", "tools", "message"),
    [
        ("def add(a: int):\n    return a\n", ["add"], r"tools: mine.py:add can't be described to a model: .*docstring"),
        ('def add(a):\n    """Adds.\n\n    Args:\n        a: one\n    """\n', ["add"], "a is missing a type hint"),
        ('def add(a: int):\n    """Adds."""\n', ["add"], r"add.*no description for the argument 'a'"),
        ('def add(a: "Not"):\n    """Adds.\n\n    Args:\n        a: one\n    """\n', ["add"], "name 'Not' is not"),
        ('def add(*a: int):\n    """Adds."""\n', ["add"], r"mine.py:add: takes \*a: int, but tools are called by name"),
        ('def add(**a: int):\n    """Adds."""\n', ["add"], r"takes \*\*a: int, but tools are called by name"),
        ('def add(a: int, /):\n    """Adds.\n\n    Args:\n        a: one\n    """\n', ["add"], "takes a: int, but"),
        ("class add:\n    pass\n", ["add"], "tools: mine.py:add is a class, expected a function"),
        (GOOD + "class Of:\n    __call__ = add\nof = Of()\n", ["of"], "mine.py:of is of type Of, expected a function"),
        (GOOD, ["ad"], "tools: mine.py was read, but 'ad' is not defined; did you mean 'add'?"),
        (GOOD, ["add", "add"], "tools: mine.py:add and mine.py:add have the same name 'add'"),
        (GOOD + "plus = add\n", ["add", "plus"], "tools: mine.py:plus and mine.py:add have the same name 'add'"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(text, tools, message):
    with pytest.raises(ConfigError, match=message):
        load(text, tools)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (GOOD, "add", "environment: mine.py:add is of type function, expected a class"),
        (ENVIRONMENT.replace("reset", "rest"), "Game", "no method reset, .* for each completion; did you mean 'rest'"),
        (
            ENVIRONMENT.replace("def reset(self, **row): ...", "reset = None"),
            "Game",
            "mine.py:Game has no method reset",
        ),
        (ENVIRONMENT.replace("**row", "*row"), "Game", r"reset takes \*row by position"),
        (ENVIRONMENT + "    def __init__(self, level): ...\n", "Game", "mine.py:Game can't be made without level"),
        (ENVIRONMENT.replace("self, to:", "self, whither:"), "Game", "environment: Game.move can't be described"),
        (ENVIRONMENT.replace("def rules", "def add"), "Game", "Game.add and mine.py:add have the same name 'add'"),
        ("class Game:\n    def reset(self): ...\n    def _move(self): ...\n", "Game", "no public method"),
    ],
)
def test_what_cannot_be_an_environment_is_refused(text, name, message):
    own = "Game.add" in message
    with pytest.raises(ConfigError, match=message):
        load(text + (GOOD if own else ""), ["add"] if own else [], environment=f"mine.py:{name}")


def test_importing_this_loads_neither_torch_nor_transformers():
    code = (
        "import sys, ft_host.rollouts.tools, ft_host.rollouts.turns, ft_host.rollouts.parsing\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_tools_of_the_page_work():
    page = (Path(__file__).parent.parent / "docs" / "tools.md").read_text(encoding="utf-8")
    text = page.split("```python my_tools.py\n")[1].split("```")[0]
    box = load(text, ["search"], environment="mine.py:Notebook")
    assert box.names == ["search", "read", "write"] and box.rewards
    Path("library.txt").write_text("An owl.\nA fox.\nOwls, again.\n")
    notebook, added = opened(box, {"answer": "owl", "level": 1})
    assert added == " You have an empty notebook."
    calls = ("search", {"word": "OWL", "most": 1}), ("write", {"note": "an owl"}), ("read", {}), ("search", {})
    assert made(box, *calls, environment=notebook) == [
        ToolResult('["An owl."]'),
        ToolResult("1 lines"),
        ToolResult('["an owl"]'),
        ToolResult(problem="TypeError: search() missing 1 required positional argument: 'word'"),
    ]
    assert worth(box, notebook) == [ToolResult(1.0)]


# ---------------------------------------------------------------- results


def test_results_are_texts_and_json():
    text = "\n".join(
        f'def give{index}():\n    """Gives."""\n    return {value}\n'
        for index, value in enumerate(
            [
                "'ü'",
                "{'a': [1, 2.5, None]}",
                "None",
                "{'at': __import__('pathlib').Path('x')}",
                "__import__('sys').exit(3)",
            ]
        )
    )
    box = load(text, [f"give{index}" for index in range(5)])
    assert made(box, *[(f"give{index}", {}) for index in range(5)]) == [
        ToolResult("ü"),
        ToolResult('{"a": [1, 2.5, null]}'),
        ToolResult("null"),
        ToolResult('{"at": "x"}'),
        ToolResult(problem="SystemExit: 3"),
    ]


def test_rewards_of_environments_are_finite_numbers_or_none():
    values = [np.float32(0.5), 2, None, float("nan"), "1"]

    class World:
        def __init__(self, value):
            self.value = value

        async def get_reward(self):
            return self.value

    box = load(GOOD)
    assert worth(box, *[World(value) for value in values]) == [
        ToolResult(0.5),
        ToolResult(2.0),
        ToolResult(None),
        ToolResult(problem="gave float nan, expected a finite number or None"),
        ToolResult(problem="gave str 1, expected a finite number or None"),
    ]


# ---------------------------------------------------------------- threads


def test_calls_of_a_lane_are_made_in_order_and_lanes_at_once():
    seen = {0: [], 1: [], 2: []}
    met = threading.Barrier(3, timeout=5)

    def step(lane, number):
        if number == 0:
            met.wait()  # only passes where all lanes run at the same time
        time.sleep(0.002 * (3 - lane))
        seen[lane].append(number)
        return lane, number

    lanes = [[partial(step, lane, number) for number in range(4)] for lane in range(3)]
    assert ToolExecutor(5.0).run([*lanes, []]) == [[ToolResult((lane, n)) for n in range(4)] for lane in range(3)] + [
        []
    ]
    assert seen == {lane: [0, 1, 2, 3] for lane in range(3)}


def test_not_more_calls_run_at_once_than_there_are_slots(monkeypatch):
    monkeypatch.setattr(calling, "AT_ONCE", 2)
    running, most, lock = 0, 0, threading.Lock()

    def step(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return number

    assert ToolExecutor(5.0).run([[partial(step, n)] for n in range(9)]) == [[ToolResult(n)] for n in range(9)]
    assert most == 2


def test_a_call_that_hangs_is_given_up_and_its_late_answer_left_out():
    go = threading.Event()
    lanes = [[partial(go.wait, 5), lambda: go.set() or time.sleep(0.05) or "after"], [lambda: "other"]]
    started = time.monotonic()
    assert ToolExecutor(0.2).run(lanes) == [
        [ToolResult(problem="took longer than 0.2 s"), ToolResult("after")],
        [ToolResult("other")],
    ]
    assert time.monotonic() - started < 3


def test_too_many_calls_that_hang_end_the_run(monkeypatch):
    monkeypatch.setattr(calling, "MOST_LEFT", 2)
    go = threading.Event()
    caller = ToolExecutor(0.05)
    late = ToolResult(problem="took longer than 0.05 s")
    assert caller.run([[partial(go.wait, 20)]] * 2) == [[late], [late]]
    with pytest.raises(FtHostError, match="tool_timeout: 3 calls that took longer than 0.05 s are still running"):
        caller.run([[partial(go.wait, 20)]])
    go.set()
    for thread in caller.left:
        thread.join(5)
    assert caller.run([[partial(time.sleep, 0.3)]]) == [[late]]  # those that came to an end are forgotten


def test_async_calls_share_a_loop_and_are_cancelled_when_they_take_too_long():
    loops, cancelled = [], threading.Event()

    async def quick(number):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        return number

    async def slow():
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def wrong():
        raise TimeoutError("of its own")

    caller = ToolExecutor(0.3)
    outcomes = caller.run([[partial(quick, 1), slow, partial(quick, 2)], [partial(quick, 3), wrong]])
    assert outcomes == [
        [ToolResult(1), ToolResult(problem="took longer than 0.3 s"), ToolResult(2)],
        [ToolResult(3), ToolResult(problem="TimeoutError: of its own")],
    ]
    assert cancelled.wait(2) and len(set(loops)) == 1


def test_a_loop_that_something_blocks_is_left_behind():
    async def blocks():
        time.sleep(6)

    async def quick():
        return "here"

    caller = ToolExecutor(0.1)
    late = ToolResult(problem="took longer than 0.1 s")
    assert caller.run([[blocks]]) == [[late]]
    deadline = time.monotonic() + 5
    while (found := caller.run([[quick]])) == [[late]] and time.monotonic() < deadline:
        pass  # the loop is missed after a second or two
    assert found == [[ToolResult("here")]]
