"""Python functions and environments that a model may call between turns: how they are found, shown and called.

A tool is a function with type hints and a docstring; an environment is a class whose public methods are tools, with one
object for each completion. The model reads an error in a call as its result, and the run counts it. Imports neither
torch nor, before tools are loaded, transformers.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.metrics import Metric, mean
from ft_host.rewards.functions import as_number
from ft_host.rollouts.tool_executor import ENVIRONMENT, Refused, ToolExecutor, ToolResult
from ft_host.types import Row
from ft_host.util.imports import load_function
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    from types import ModuleType

    from ft_host.config.rollout import RolloutConfig
    from ft_host.rollouts.turns import Conversation


OWN = ("reset", "get_reward")  # methods of an environment that are hidden from the model


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call as the model wrote it. `problem` says what is wrong with one that can't be parsed."""

    name: str
    id: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(kw_only=True)
class Toolbox:
    """The tools of a run. The chat template gets `schemas`."""

    functions: dict[str, Callable[..., Any]]
    environment: type | None
    methods: tuple[str, ...]  # methods of the environment that are tools
    rewards: bool  # whether the environment has get_reward
    schemas: list[dict[str, Any]]
    caller: ToolExecutor

    @property
    def names(self) -> list[str]:
        return [*self.functions, *self.methods]

    def opening(self, columns: Row) -> Callable[[], tuple[Any, str]]:
        """Return the call that makes a fresh environment, resets it with a row's columns, and returns it with the text
        that it adds to the prompt. Raises DataError for a parameter of `reset` that is no column."""
        return functools.partial(self._opened, accepted(self.environment, columns))

    def opened(self, outcome: ToolResult) -> tuple[Any, str]:
        """Return what that call has returned. Raises FtHostError if `reset` failed: a conversation needs its
        environment."""
        if outcome.problem:
            problem = f"environment {self.environment.__name__}: reset failed: {outcome.problem}"
            raise FtHostError(problem, facts=ENVIRONMENT)
        return outcome.value

    def _opened(self, columns: Row) -> tuple[Any, str]:
        environment = self.environment()
        added = self.caller.finished(environment.reset(**columns))
        if added is not None and not isinstance(added, str):
            raise Refused(f"it returned {type(added).__name__} {str(added)[:60]!r}, expected text or None")
        return environment, added or ""

    def answering(self, calls: list[Call], environment: Any) -> list[Callable[[], str]]:
        """Return the calls of a turn, as functions that return the text that the model reads."""
        return [functools.partial(self._answer, call, environment) for call in calls]

    def _answer(self, call: Call, environment: Any) -> str:
        if call.problem:
            raise Refused(call.problem)
        if call.name in self.functions:
            function = self.functions[call.name]
        elif call.name in self.methods:
            function = getattr(environment, call.name)
        else:
            raise Refused(f"there is no tool {call.name!r}" + nearest(call.name, self.names, QUOTED, "tools"))
        return as_text(self.caller.finished(function(**call.arguments)))

    def scoring(self, environment: Any) -> Callable[[], float | None]:
        """Return the call of an environment's `get_reward`: a finite number, or None."""
        return functools.partial(self._worth, environment)

    def _worth(self, environment: Any) -> float | None:
        value = self.caller.finished(environment.get_reward())
        number = as_number(value)
        if value is not None and (number is None or not math.isfinite(number)):
            raise Refused(f"gave {type(value).__name__} {str(value)[:60]}, expected a finite number or None")
        return number

    def metrics(self, conversations: list[Conversation]) -> dict[str, Metric]:
        """Return calls a completion, and the share of calls that failed (absent without calls)."""
        calls = sum(talk.calls for talk in conversations)
        return {
            "tools/call_frequency": mean(calls, len(conversations)),
            "tools/failure_frequency": mean(sum(talk.failures for talk in conversations), calls),
        }


def as_text(value: Any) -> str:
    """Return text as it is, anything else as JSON; values that JSON doesn't know are written by `str`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def accepted(environment: type, columns: Row) -> Row:
    """Return the columns that `reset` takes. Raises DataError for a parameter that no column fills."""
    parameters = list(inspect.signature(environment.reset).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return columns
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in columns:
            raise DataError(
                f"environment {environment.__name__}: parameter {parameter.name!r} of reset is no column of the data"
                + nearest(parameter.name, columns, QUOTED, "columns")
            )
    return {parameter.name: columns[parameter.name] for parameter in parameters if parameter.name in columns}


# ---------------------------------------------------------------- loading


def load_tools(config: RolloutConfig) -> Toolbox | None:
    """Import the tools of the config and describe them; None if it names none.

    Raises ConfigError, naming the field and the function, for one that can't be found or described, or whose name is
    taken.
    """
    modules: dict[str, ModuleType] = {}
    functions: dict[str, Callable[..., Any]] = {}
    schemas: dict[str, dict[str, Any]] = {}
    origins: dict[str, str] = {}
    for spec in config.tools:
        function = load_function(spec, "tools", modules)
        if not inspect.isroutine(function):
            raise ConfigError(f"tools: {spec} is {kind(function)}, expected a function")
        schema = described(function, f"tools: {spec}")
        name = schema["function"]["name"]
        functions[unique(name, "tools", spec, origins)] = function
        schemas[name] = schema
    environment = None if config.environment is None else load_environment(config.environment, modules)
    methods = [] if environment is None else public(environment)
    for name, method in methods:
        where = f"{environment.__name__}.{name}"
        schema = described(method, f"environment: {where}")
        schema["function"]["name"] = unique(
            name, "environment", where, origins
        )  # not the name that a decorator gave it
        schemas[name] = schema
    if environment is None and not functions:
        return None
    if not schemas:
        raise ConfigError(f"environment: {config.environment} has no public method for the model to call")
    return Toolbox(
        functions=functions,
        environment=environment,
        methods=tuple(name for name, _ in methods),
        rewards=environment is not None and "get_reward" in dir(environment),
        schemas=list(schemas.values()),
        caller=ToolExecutor(config.tool_timeout),
    )


def load_environment(spec: str, modules: dict[str, ModuleType]) -> type:
    """Return the class. Raises ConfigError if it isn't one, or can't be made or reset."""
    cls = load_function(spec, "environment", modules)
    if not isinstance(cls, type):
        raise ConfigError(f"environment: {spec} is {kind(cls)}, expected a class")
    if not inspect.isfunction(inspect.getattr_static(cls, "reset", None)):
        near = nearest("reset", [name for name, _ in public(cls)], QUOTED, "its methods")
        raise ConfigError(f"environment: {spec} has no method reset, which is called for each completion{near}")
    for parameter in list(inspect.signature(cls.reset).parameters.values())[1:]:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            raise ConfigError(f"environment: {spec}: reset takes {parameter} by position; columns are passed by name")
    needed = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"environment: {spec} can't be made without {', '.join(needed)}; expected a class that needs no arguments "
            "(arguments that differ between rows belong to reset)"
        )
    return cls


def public(environment: type) -> list[tuple[str, Callable[..., Any]]]:
    """Return the methods of a class that a model may call, by name."""
    members = inspect.getmembers(environment, inspect.isroutine)
    return [(name, each) for name, each in members if not name.startswith("_") and name not in OWN]


def described(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """Return the JSON schema of a function, from its signature and docstring. Raises ConfigError for what they lack."""
    from transformers.utils import chat_template_utils as templates

    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ConfigError(f"{where}: takes {parameter}, but tools are called by name; name each argument")
    try:
        return templates.get_json_schema(function)
    except (templates.DocstringParsingException, templates.TypeHintParsingException, NameError, TypeError) as error:
        raise ConfigError(
            f"{where} can't be described to a model: {' '.join(str(error).split())}. A tool needs a docstring, and each"
            " argument of it a type hint and a line under Args: there"
        ) from error


def unique(name: str, option: str, where: str, origins: dict[str, str]) -> str:
    if name in origins:
        raise ConfigError(f"{option}: {where} and {origins[name]} have the same name {name!r}; rename one")
    origins[name] = where
    return name


def kind(value: Any) -> str:
    return "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
