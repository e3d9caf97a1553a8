"""Reward functions: found by name, called with TRL's signature, and held to what they promise.

    def reward(prompts, completions, completion_ids, *, trainer_state, log_extra, log_metric, **columns)
        -> list[float | None]

`def` or `async def`; each argument is passed only if the function takes it. Everything but `trainer_state` and the two
`log_*` functions is a list with one item a completion; `columns` are the columns of the data set. None says that the
reward doesn't apply to that completion. Conversational prompts are lists of messages, and so are their completions.
The folder of a reward model stands for such a function too (`reward_model`).
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.imports import EXAMPLE, cause, load_function, nearest
from ft_host.rewards.model import RewardModel, name_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig

ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


@dataclass(frozen=True)
class RewardFunction:
    """A function and what it asks for. `takes`: names of its parameters; `takes_all`: it has **kwargs."""

    name: str
    call: Callable[..., Any]
    takes: tuple[str, ...]
    needs: tuple[str, ...]  # those without a default
    takes_all: bool
    is_async: bool


@dataclass(kw_only=True)
class Scoring:
    """What is scored. One item a completion in each list.

    `metrics` and `extra` are filled by the functions, through `log_metric(name, value)` and `log_extra(column, values)`.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    trainer_state: Any
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)


# ---------------------------------------------------------------- finding


def load_rewards(config: RunConfig) -> list[RewardFunction]:
    """The rewards of `eval_reward`. Raises ConfigError, naming the entry and what is nearest to it."""
    modules: dict[str, ModuleType] = {}  # a module that several entries name is read once
    functions = [find_reward(spec, config, modules=modules) for spec in config.eval_reward]
    names = [function.name for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"eval_reward: two rewards are called {name!r}, and so would their metrics; rename one")
    return functions


def find_reward(
    spec: str, config: RunConfig, option: str = "eval_reward", modules: dict[str, ModuleType] | None = None
) -> RewardFunction:
    """The folder of a reward model, whose weights are loaded at its first call, or a function as in `load_reward`."""
    if Path(spec).is_dir():
        return describe(name_of(spec), RewardModel(spec, config, option))
    if ":" not in spec:
        raise ConfigError(f"{option}: {spec!r} is not of the form {EXAMPLE}, and no folder")
    return load_reward(spec, option, modules)


def load_reward(spec: str, option: str = "eval_reward", modules: dict[str, ModuleType] | None = None) -> RewardFunction:
    """A function by file or module; see `ft_host.imports`."""
    return describe(spec.rpartition(":")[2], load_function(spec, option, modules))


def describe(name: str, call: Callable[..., Any]) -> RewardFunction:
    """What a callable asks for, by its signature."""
    parameters = inspect.signature(call).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{name}: {parameter.name!r} is positional-only; reward functions are called by name")
    return RewardFunction(
        name=name,
        call=call,
        takes=tuple(p.name for p in named),
        needs=tuple(p.name for p in named if p.default is p.empty),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
        is_async=inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__),
    )


# ---------------------------------------------------------------- calling


def check_columns(function: RewardFunction, columns: Iterable[str]) -> None:
    """Refuse a function that can't be called on data with these columns. Raises DataError, naming both."""
    columns = list(columns)
    taken = [column for column in columns if column in ARGUMENTS]
    if taken:
        raise DataError(
            f"{function.name}: column {taken[0]!r} of the data has the name of an argument of reward functions; rename "
            f"it with dataset_columns"
        )
    for name in function.needs:
        if name not in ARGUMENTS and name not in columns:
            raise DataError(
                f"{function.name}: its parameter {name!r} is neither a column of the data nor an argument of reward "
                f"functions ({', '.join(ARGUMENTS)})" + nearest(name, columns, "columns")
            )


def score(functions: list[RewardFunction], scoring: Scoring) -> list[list[float | None]]:
    """The rewards of each function, in order. Async functions run together, after the others.

    Raises FtHostError that names the function, where it stands, and what was wrong: it raised, or did not return one
    finite number or None for each completion.
    """
    results: dict[int, Any] = {}
    awaited: dict[int, Awaitable[Any]] = {}
    for index, function in enumerate(functions):
        check_columns(function, scoring.columns)
        if not function.is_async:
            results[index] = _call(function, scoring)
    for index, function in enumerate(functions):
        if function.is_async:
            awaited[index] = _await(function, _call(function, scoring))
    if awaited:
        results |= zip(awaited, _run_together(list(awaited.values())), strict=True)
    rows = len(scoring.completions)
    return [_checked(function, results[index], rows) for index, function in enumerate(functions)]


def _call(function: RewardFunction, scoring: Scoring) -> Any:
    def log_metric(name: str, value: float) -> None:
        scoring.metrics.setdefault(name, []).append(_number(function, value, f"log_metric({name!r})"))

    def log_extra(column: str, values: list[Any]) -> None:
        if len(values) != len(scoring.completions):
            raise _wrong(
                function,
                f"gave log_extra({column!r}) {len(values)} values, expected one for each of the "
                f"{len(scoring.completions)} completions",
            )
        scoring.extra[column] = list(values)

    available = {
        **scoring.columns,
        "prompts": scoring.prompts,
        "completions": scoring.completions,
        "completion_ids": scoring.completion_ids,
        "trainer_state": scoring.trainer_state,
        "log_extra": log_extra,
        "log_metric": log_metric,
    }
    if not function.takes_all:
        available = {name: value for name, value in available.items() if name in function.takes}
    try:
        return function.call(**available)
    except FtHostError:
        raise
    except Exception as error:
        raise _wrong(function, f"raised {cause(error)}") from error


async def _await(function: RewardFunction, started: Awaitable[Any]) -> Any:
    try:
        return await started
    except FtHostError:
        raise
    except Exception as error:
        raise _wrong(function, f"raised {cause(error)}") from error


def _run_together(awaited: list[Awaitable[Any]]) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*awaited)

    # In a thread of its own: in a notebook this one has a running event loop already.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, together()).result()


def _checked(function: RewardFunction, result: Any, rows: int) -> list[float | None]:
    if isinstance(result, (str, bytes, dict)) or not isinstance(result, Iterable):
        raise _wrong(function, f"returned {_shown(result)}, expected a list of {rows} rewards, one a completion")
    rewards = list(result)
    if len(rewards) != rows:
        raise _wrong(function, f"returned {len(rewards)} rewards for {rows} completions")
    return [None if r is None else _number(function, r, f"reward {i}") for i, r in enumerate(rewards)]


def _number(function: RewardFunction, value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)  # numpy's and torch's scalars too
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(function, f"gave {_shown(value)} as {what}, expected a finite number (or None: does not apply)")
    return number


def _wrong(function: RewardFunction, text: str) -> FtHostError:
    call = inspect.unwrap(function.call)
    code = call.__code__ if inspect.isfunction(call) else None
    place = f" ({code.co_filename}, line {code.co_firstlineno})" if code else ""
    return FtHostError(f"reward function {function.name}{place} {text}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
