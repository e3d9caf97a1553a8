"""Built-in rewards, with the names and results of TRL 1.16 (`trl.rewards`).

A reward is chosen by name (`reward: [accuracy_reward]`) and configured by `reward_kwargs: {name: {argument: value}}`.
Each entry of the table is a function of those arguments that returns a reward function. Completions are texts, or lists
of messages, of which the last one counts.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ft_host.errors import ConfigError
from ft_host.util.text import QUOTED, nearest

Call = Callable[..., list[float | None]]


@dataclass(frozen=True)
class Builtin:
    """`make(**arguments)` returns the function; `name` is the name in metrics, as in TRL."""

    name: str
    make: Callable[..., Call]
    maths: bool = False  # needs math-verify


# ---------------------------------------------------------------- making


def made_to_measure(spec: str, arguments: dict[str, Any], option: str = "reward") -> Call:
    """Return the built-in reward `spec`.

    Raises ConfigError that names an argument that is unknown, missing or of another type, and a package to install.
    """
    builtin = BUILTIN[spec]
    problem = lacking(spec)
    if problem:
        raise ConfigError(f"{option}: {problem}")
    where = f"reward_kwargs.{spec}"
    parameters = inspect.signature(builtin.make, eval_str=True).parameters
    for name, value in arguments.items():
        if name not in parameters:
            hint = nearest(name, list(parameters), QUOTED, "there are") if parameters else "; it takes none"
            raise ConfigError(f"{where}: unknown argument {name!r}{hint}")
        check, expected = KINDS[parameters[name].annotation]
        if isinstance(value, bool) or not check(value):
            raise ConfigError(f"{where}.{name}: found {value!r}, expected {expected}")
    missing = [name for name, each in parameters.items() if each.default is each.empty and name not in arguments]
    if missing:
        raise ConfigError(f"{option}: {spec} needs {', '.join(missing)}; set {where}: {{{missing[0]}: …}}")
    try:
        return builtin.make(**arguments)
    except ValueError as error:
        raise ConfigError(f"{where}.{error}") from error


def lacking(spec: str) -> str | None:
    """Return what a built-in reward needs that isn't installed, or None."""
    if not BUILTIN[spec].maths or all(map(importlib.util.find_spec, ("math_verify", "latex2sympy2_extended"))):
        return None
    return f"{spec} needs math-verify, which isn't installed: pip install 'ft-host[math]'"


def check_arguments(by_reward: dict[str, Any], rewards: list[str]) -> None:
    """Refuse `reward_kwargs` that no reward of the run takes, and built-in rewards that can't be made.

    Raises ConfigError.
    """
    for name, arguments in by_reward.items():
        if name not in BUILTIN:
            raise ConfigError(
                f"reward_kwargs: {name!r} is no built-in reward" + nearest(name, list(BUILTIN), QUOTED, "there are")
            )
        if name not in rewards:
            raise ConfigError(f"reward_kwargs: {name} is not one of the run's rewards ({', '.join(rewards)})")
        if not isinstance(arguments, dict):
            raise ConfigError(f"reward_kwargs.{name}: found {arguments!r}, expected {{argument: value}}")
    for spec in rewards:
        if spec in BUILTIN:
            made_to_measure(spec, by_reward.get(spec, {}))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


KINDS: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda value: isinstance(value, int), "a whole number"),
    str: (lambda value: isinstance(value, str) and bool(value), "a text"),
    float: (_is_number, "a number"),
    list[str] | None: (lambda value: value is None or _are_texts(value), "a list of texts"),
}


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """Return a text as it is; of messages, the content of the last one."""
    return completion if isinstance(completion, str) else completion[-1].get("content") or ""


# ---------------------------------------------------------------- right answers, by math-verify


def make_accuracy() -> Call:
    def accuracy_reward(completions: list[Any], solution: list[str], log_extra: Any = None) -> list[float | None]:
        """1 where the answer equals the column `solution` mathematically, 0 where it doesn't or isn't found, None where
        the solution has no mathematics.
        """
        return _marked([text_of(each) for each in completions], solution, log_extra)

    return accuracy_reward


def make_reasoning_accuracy(reasoning_delimiters: list[str] | None = None) -> Call:
    """`reasoning_delimiters`: what ends the reasoning (</think>). The first of them found in a text is used."""
    delimiters = reasoning_delimiters or ["</think>"]

    def reasoning_accuracy_reward(
        completions: list[Any], solution: list[str], log_extra: Any = None
    ) -> list[float | None]:
        """As accuracy_reward, for the text after the last end of reasoning; 0 where reasoning doesn't end."""
        answers: list[str | None] = []
        for text in map(text_of, completions):
            ends = [each for each in delimiters if each in text]
            answers.append(text.rpartition(ends[0])[2] if ends else None)
        return _marked(answers, solution, log_extra)

    return reasoning_accuracy_reward


def make_cosine_scaled(
    max_len: int,
    min_value_wrong: float = -1.0,
    max_value_wrong: float = -0.5,
    min_value_correct: float = 0.5,
    max_value_correct: float = 1.0,
) -> Call:
    """Short correct answers score best, short wrong ones worst: half a cosine between the bounds over
    `max_len` tokens.

    Constant after that (arXiv 2502.03373, C.1).
    """
    if max_len < 1:
        raise ValueError(f"max_len: found {max_len}, expected 1 or more")
    bounds = {1.0: (min_value_correct, max_value_correct), 0.0: (max_value_wrong, min_value_wrong)}

    def cosine_scaled_reward(
        completions: list[Any], solution: list[str], completion_ids: list[list[int]]
    ) -> list[float | None]:
        rewards: list[float | None] = []
        marks = _marked([text_of(each) for each in completions], solution, None)
        for mark, ids in zip(marks, completion_ids, strict=True):
            if mark is None:
                rewards.append(None)
                continue
            longest, shortest = bounds[mark]
            share = min(len(ids) / max_len, 1.0)
            rewards.append(float(longest + 0.5 * (shortest - longest) * (1.0 + math.cos(share * math.pi))))
        return rewards

    return cosine_scaled_reward


def _marked(answers: list[str | None], solutions: list[str], log_extra: Any) -> list[float | None]:
    """Return 1, 0 or None for each answer; an answer of None is 0. `log_extra` receives the parsed answers."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    # Its time limits are alarms, which only the main thread can set. Elsewhere it would warn at each call.
    limited = threading.current_thread() is threading.main_thread()
    if not limited:
        for name in ("math_verify.parser", "math_verify.grader"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # An answer must be marked LaTeX, \boxed{} before anything else. A solution may be a bare number.
    latex = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
    )
    rewards: list[float | None] = []
    read: list[tuple[str, str]] = []
    for answer, solution in zip(answers, solutions, strict=True):
        if answer is None:
            rewards.append(0.0)
            read.append(("[incomplete reasoning]", "[incomplete reasoning]"))
            continue
        gold = parse(solution, parsing_timeout=10 if limited else None)
        if not gold:
            rewards.append(None)
            read.append(("[unparseable]", "[skipped]"))
            continue
        parsed = parse(
            answer, extraction_config=[latex], extraction_mode="first_match", parsing_timeout=10 if limited else None
        )
        rewards.append(float(verify(gold, parsed, timeout_seconds=5 if limited else None)))
        read.append((str(gold), str(parsed) if parsed else "[unparseable]"))
    if log_extra is not None:
        log_extra("solution", list(solutions))
        log_extra("gold_parsed", [gold for gold, _ in read])
        log_extra("answer_parsed", [parsed for _, parsed in read])
    return rewards


# ---------------------------------------------------------------- form and length


def make_think_format(opening: str = "<think>", closing: str = "</think>") -> Call:
    """`opening`, `closing`: the tags of thoughts."""

    def think_format_reward(completions: list[Any], opened_by_prompt: list[str] | None = None) -> list[float]:
        """1 where a completion begins with <think>, has that once, and </think> after it; else 0. A <think> that the
        prompt ends with is the completion's beginning.
        """
        rewards = []
        opened = opened_by_prompt or [""] * len(completions)
        for text, begun in zip(map(text_of, completions), opened, strict=True):
            whole = begun + text if begun.strip() == opening else text
            rest = whole.removeprefix(opening)
            rewards.append(float(rest != whole and opening not in rest and closing in rest))
        return rewards

    return think_format_reward


def make_repetition_penalty(ngram_size: int = 3, max_penalty: float = -1.0) -> Call:
    """`max_penalty` times the share of n-grams of tokens that occurred before (arXiv 2502.03373, C.2)."""
    if max_penalty > 0:
        raise ValueError(f"max_penalty: found {max_penalty}, expected 0 or less")
    if ngram_size < 1:
        raise ValueError(f"ngram_size: found {ngram_size}, expected 1 or more")

    def repetition_penalty_reward(completion_ids: list[list[int]]) -> list[float]:
        rewards = []
        for ids in completion_ids:
            total = len(ids) - ngram_size + 1
            different = len({tuple(ids[start : start + ngram_size]) for start in range(total)})
            repeated = 1 - different / total if total > 0 else 0
            rewards.append(repeated * max_penalty if repeated else 0.0)
        return rewards

    return repetition_penalty_reward


def make_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> Call:
    """0 up to `max_completion_len - soft_punish_cache` tokens, then down to -1 at `max_completion_len` (arXiv
    2503.14476, equation 13)."""
    if max_completion_len < 1:
        raise ValueError(f"max_completion_len: found {max_completion_len}, expected 1 or more")
    if not 0 <= soft_punish_cache <= max_completion_len:
        raise ValueError(f"soft_punish_cache: found {soft_punish_cache}, expected 0 to {max_completion_len}")
    free = max_completion_len - soft_punish_cache

    def soft_overlong_punishment_reward(completion_ids: list[list[int]]) -> list[float]:
        rewards = []
        for length in map(len, completion_ids):
            over = (free - length) / soft_punish_cache if free < length <= max_completion_len else -1.0
            rewards.append(0.0 if length <= free else over)
        return rewards

    return soft_overlong_punishment_reward


BUILTIN = {
    "accuracy_reward": Builtin("accuracy_reward", make_accuracy, maths=True),
    "reasoning_accuracy_reward": Builtin("reasoning_accuracy_reward", make_reasoning_accuracy, maths=True),
    "get_cosine_scaled_reward": Builtin("cosine_scaled_reward", make_cosine_scaled, maths=True),
    "think_format_reward": Builtin("think_format_reward", make_think_format),
    "get_repetition_penalty_reward": Builtin("repetition_penalty_reward", make_repetition_penalty),
    "get_soft_overlong_punishment": Builtin("soft_overlong_punishment_reward", make_soft_overlong_punishment),
}
