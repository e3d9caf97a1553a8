"""Reward functions: finds them by name, calls them with TRL's signature, and checks what they return.

    def reward(prompts, completions, completion_ids, opened_by_prompt, *, trainer_state, log_extra, log_metric,
               **columns)
        -> list[float | None]

`def` or `async def`. An argument is passed only if the function takes it. Everything but `trainer_state` and the two
`log_*` functions is a list with one item for each completion; `columns` are the columns of the data set. None means
that the reward doesn't apply to that completion. Conversational prompts are lists of messages, and so are their
completions. The name of a built-in reward or the folder of a reward model may stand for a function (`builtin`,
`model`).

`score` calls the functions in this process. A `RewardPool` calls them in separate processes, where a crash or a hang
can't end the run.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft_host.errors import DataError, FtHostError
from ft_host.util.imports import cause
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    from ft_host.run import Run

if TYPE_CHECKING:
    pass

ARGUMENTS = ("prompts", "completions", "completion_ids", "opened_by_prompt", "trainer_state", "log_extra", "log_metric")
EXPECTED = "expected a finite number (or None: does not apply)"


@dataclass(frozen=True)
class RewardFunction:
    """A function and its parameters. `takes`: names of its parameters; `takes_all`: it has **kwargs."""

    name: str
    call: Callable[..., Any] | None  # None: it is in another process
    takes: tuple[str, ...]
    needs: tuple[str, ...]  # those without a default
    takes_all: bool
    is_async: bool
    file: str | None = None  # the file that defines it, if known
    line: int = 0

    def __str__(self) -> str:
        return f"reward function {self.name}" + (f" ({self.file}, line {self.line})" if self.file else "")


@dataclass(kw_only=True)
class Scoring:
    """The completions to score. Each list has one item for each completion.

    The functions fill `metrics` and `extra` through `log_metric(name, value)` and `log_extra(column, values)`. `notes`:
    what they gave there that can't be logged; it is left out, since what is logged never ends a run.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]
    trainer_state: Any
    opened_by_prompt: list[str] = field(default_factory=list)  # the tag that each prompt ends with (<think>), or ""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Scored:
    """`values[completion][function]`: the reward, None where a function doesn't apply or has failed.

    `failures`: by function, (completion, reason). `metrics` and `extra`: what functions logged, by name; `extra` has
    one value for each completion, None where the call for it failed. `notes`: sentences for the user.
    """

    values: list[list[float | None]]
    failures: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Fault(Exception):
    """What was wrong with a call, worded to follow the function's name: "returned 2 rewards for 3 completions"."""


# ---------------------------------------------------------------- finding


def check_columns(function: RewardFunction, columns: Iterable[str]) -> None:
    """Refuse a function that can't be called on data with these columns. Raises DataError, which names both."""
    columns = list(columns)
    taken = [column for column in columns if column in ARGUMENTS]
    if taken:
        raise DataError(
            f"{function.name}: column {taken[0]!r} of the data has the name of an argument of reward functions; rename "
            "it with dataset_columns"
        )
    for name in function.needs:
        if name not in ARGUMENTS and name not in columns:
            raise DataError(
                f"{function.name}: its parameter {name!r} is neither a column of the data nor an argument of reward "
                f"functions ({', '.join(ARGUMENTS)})" + nearest(name, columns, QUOTED, "columns")
            )


# ---------------------------------------------------------------- calling in this process


def score(functions: list[RewardFunction], scoring: Scoring) -> list[list[float | None]]:
    """Return the rewards of each function, in order. Async functions run together, after the others.

    Raises FtHostError where a function raised, or did not return one finite number or None for each completion. It
    names the function, its file and line, and the cause.
    """
    results: dict[int, Any] = {}
    awaited: dict[int, Awaitable[Any]] = {}
    for index, function in enumerate(functions):
        check_columns(function, scoring.columns)
        if not function.is_async:
            results[index] = _named(function, call, function, scoring)
    for index, function in enumerate(functions):
        if function.is_async:
            awaited[index] = _awaited(function, _named(function, call, function, scoring))
    if awaited:
        results |= zip(awaited, _run_together(list(awaited.values())), strict=True)
    return [_named(function, _all_finite, results[i], len(scoring.completions)) for i, function in enumerate(functions)]


def _named(function: RewardFunction, what: Callable[..., Any], *arguments: Any) -> Any:
    """Run a step of a call. A Fault becomes an FtHostError that names the function."""
    try:
        return what(*arguments)
    except Fault as fault:
        raise FtHostError(f"{function} {fault}") from fault.__cause__


async def _awaited(function: RewardFunction, started: Awaitable[Any]) -> Any:
    try:
        return await finish(function, started)
    except Fault as fault:
        raise FtHostError(f"{function} {fault}") from fault.__cause__


def _run_together(awaited: list[Awaitable[Any]]) -> list[Any]:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    async def together() -> list[Any]:
        return await asyncio.gather(*awaited)

    # In a separate thread: in a notebook this thread already runs an event loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, together()).result()


def _all_finite(result: Any, rows: int) -> list[float | None]:
    rewards, bad = read_rewards(result, rows)
    for index, shown in bad.items():
        raise Fault(f"gave {shown} as reward {index}, {EXPECTED}")
    return rewards


# ---------------------------------------------------------------- one call, here or in a worker


def call(function: RewardFunction, scoring: Scoring) -> Any:
    """Return what the function returns (an awaitable if it is async). `scoring` collects what it logs. Raises Fault."""

    def log_metric(name: str, value: float) -> None:
        number = as_number(value)
        if number is None:
            scoring.notes.append(f"{function} gave {shown(value)} as log_metric({name!r}), expected a number: left out")
        elif math.isfinite(number):  # usually the mean of no values
            scoring.metrics.setdefault(name, []).append(number)

    def log_extra(column: str, values: list[Any]) -> None:
        if len(values) != len(scoring.completions):
            scoring.notes.append(
                f"{function} gave log_extra({column!r}) {counted(len(values), 'value')}, expected one for each of the "
                f"{counted(len(scoring.completions), 'completion')}: left out"
            )
            return
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
    if "opened_by_prompt" in function.takes:  # isn't TRL's: only a function that names it gets it
        available["opened_by_prompt"] = scoring.opened_by_prompt or [""] * len(scoring.completions)
    try:
        return function.call(**available)
    except (Fault, FtHostError):
        raise
    except Exception as error:
        raise Fault(f"raised {cause(error, function.file)}") from error


async def finish(function: RewardFunction, started: Awaitable[Any]) -> Any:
    """Return the result of an async function. Raises Fault."""
    try:
        return await started
    except (Fault, FtHostError):
        raise
    except Exception as error:
        raise Fault(f"raised {cause(error, function.file)}") from error


def read_rewards(result: Any, rows: int) -> tuple[list[float | None], dict[int, str]]:
    """Return the rewards, and by index the values that aren't finite, as text (their reward is None).

    Raises Fault where the result isn't a list of `rows` numbers and Nones.
    """
    if isinstance(result, (str, bytes, dict)) or not isinstance(result, Iterable):
        raise Fault(f"returned {shown(result)}, expected a list of {counted(rows, 'reward')}, one a completion")
    try:
        values = list(result)
    except Exception as error:  # a generator runs only now
        raise Fault(f"raised {cause(error)}") from error
    if len(values) != rows:
        raise Fault(f"returned {counted(len(values), 'reward')} for {counted(rows, 'completion')}")
    rewards: list[float | None] = []
    bad: dict[int, str] = {}
    for index, value in enumerate(values):
        number = None if value is None else as_number(value)
        if value is not None and number is None:
            which = f" as reward {index}" if rows > 1 else ""
            raise Fault(f"gave {shown(value)}{which}, {EXPECTED}")
        if number is not None and not math.isfinite(number):
            bad[index], number = shown(value), None
        rewards.append(number)
    return rewards, bad


def as_number(value: Any) -> float | None:
    """Return a number (numpy's and torch's scalars too) as a float, or None for anything else."""
    try:
        return None if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a torch tensor with several values
        return None


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"


def trainer_state(run: Run) -> Any:
    """Return transformers' TrainerState, which reward functions receive as in TRL."""
    from transformers import TrainerState

    return TrainerState(
        global_step=run.step,
        max_steps=run.config.max_steps,
        num_train_epochs=run.config.num_train_epochs,
        is_world_process_zero=run.rank == 0,
    )
