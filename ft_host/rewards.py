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
import difflib
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
import zlib
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.reward_model import RewardModel, name_of

if TYPE_CHECKING:
    from ft_host.config import RunConfig

ARGUMENTS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
EXAMPLE = "file.py:function or package.module:function"


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
    return load_reward(spec, option, modules)


def load_reward(spec: str, option: str = "eval_reward", modules: dict[str, ModuleType] | None = None) -> RewardFunction:
    """`file.py:function` (from the working directory) or `package.module:function`.

    `option` is the field that errors name; `modules` holds what was read already, and is added to.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"{option}: {spec!r} is not of the form {EXAMPLE}, and no folder")
    modules = {} if modules is None else modules
    if where not in modules:
        modules[where] = _load_file(where, option) if where.endswith(".py") else _load_module(where, option)
    module = modules[where]
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    if name not in functions:
        # of what is written in the module itself, not of what it imports
        own = [
            key for key, value in functions.items() if inspect.isroutine(value) and inspect.getmodule(value) is module
        ]
        what = "is not a function" if name in vars(module) else "is not there"
        raise ConfigError(f"{option}: {where} was read, but {name!r} {what}" + _nearest(name, own, "functions in it"))
    return describe(name, functions[name])


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


def _load_file(path: str, option: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        nearby = [str(other) for other in Path(path).parent.glob("*.py")]
        raise ConfigError(f"{option}: there is no file {path}" + _nearest(path, nearby, "files there"))
    name = f"_ft_host_file_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{option}: {path} can't be imported: {_cause(error)}") from error
    return module


def _load_module(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        hint = f" (a file is given with its .py: {name}.py:…)" if Path(f"{name}.py").is_file() else ""
        raise ConfigError(f"{option}: module {name!r} can't be imported: {_cause(error)}{hint}") from error


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
                f"functions ({', '.join(ARGUMENTS)})" + _nearest(name, columns, "columns")
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
        raise _wrong(function, f"raised {_cause(error)}") from error


async def _await(function: RewardFunction, started: Awaitable[Any]) -> Any:
    try:
        return await started
    except FtHostError:
        raise
    except Exception as error:
        raise _wrong(function, f"raised {_cause(error)}") from error


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


def _cause(error: BaseException) -> str:
    """The error on one line, with the innermost place that is neither ours nor the import system's."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    inner = [f for f in frames if f.filename not in (__file__, importlib.__file__) and not f.filename.startswith("<")]
    return f"{text} ({inner[-1].filename}, line {inner[-1].lineno})" if inner else text


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"


def _nearest(name: str, known: list[str], what: str) -> str:
    if not known:
        return ""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; {what}: {', '.join(sorted(known)[:10])}"
