"""From names to reward functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ft_host.config.builtin_rewards import BUILTIN, made_to_measure
from ft_host.errors import ConfigError
from ft_host.rewards.functions import RewardFunction
from ft_host.rewards.model import RewardModel, name_of
from ft_host.util.imports import EXAMPLE, load_function
from ft_host.util.text import QUOTED, nearest

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def load_rewards(config: RunConfig, arguments: dict[str, dict[str, Any]] | None = None) -> list[RewardFunction]:
    """Return the rewards of `eval_reward`. `arguments`: those of built-in rewards, {name: {argument: value}}.

    Raises ConfigError, which names the entry and the nearest known name.
    """
    modules: dict[str, ModuleType] = {}  # a module that several entries name is read once
    functions = [find_reward(spec, config, modules=modules, arguments=arguments) for spec in config.eval_reward]
    check_names(functions, "eval_reward")
    return functions


def check_names(functions: list[RewardFunction], option: str) -> None:
    names = [function.name for function in functions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{option}: two rewards are called {name!r}, and so would their metrics; rename one")


def find_reward(
    spec: str,
    config: RunConfig,
    option: str = "eval_reward",
    modules: dict[str, ModuleType] | None = None,
    arguments: dict[str, dict[str, Any]] | None = None,
) -> RewardFunction:
    """Return a built-in reward by name, a reward model by its folder, or a function as `load_reward` does.

    A reward model's weights are loaded at its first call.
    """
    if spec not in BUILTIN and Path(spec).is_dir():
        return describe(name_of(spec), RewardModel(spec, config, option))
    return load_reward(spec, option, modules, arguments)


def load_reward(
    spec: str,
    option: str = "eval_reward",
    modules: dict[str, ModuleType] | None = None,
    arguments: dict[str, dict[str, Any]] | None = None,
) -> RewardFunction:
    """Return a built-in reward, or a function from a file or a module; see `ft_host.util.imports`."""
    if spec in BUILTIN:
        return describe(BUILTIN[spec].name, made_to_measure(spec, (arguments or {}).get(spec, {}), option))
    if ":" not in spec:
        raise ConfigError(
            f"{option}: {spec!r} is not of the form {EXAMPLE}, and no folder"
            + nearest(spec, list(BUILTIN), QUOTED, "built in")
        )
    return describe(spec.rpartition(":")[2], load_function(spec, option, modules))


def describe(name: str, call: Callable[..., Any]) -> RewardFunction:
    """Read from a callable's signature which arguments it takes."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except ValueError as error:  # some functions written in C
        raise ConfigError(f"{name}: its parameters can't be read: {error}") from error
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{name}: {parameter.name!r} is positional-only; reward functions are called by name")
    bare = inspect.unwrap(call)
    code = bare.__code__ if inspect.isfunction(bare) else None
    return RewardFunction(
        name=name,
        call=call,
        takes=tuple(p.name for p in named),
        needs=tuple(p.name for p in named if p.default is p.empty),
        takes_all=any(p.kind is p.VAR_KEYWORD for p in parameters),
        is_async=inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__),
        file=code.co_filename if code else None,
        line=code.co_firstlineno if code else 0,
    )
