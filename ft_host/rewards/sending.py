"""What is sent to the processes that call reward functions."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from ft_host.errors import DataError
from ft_host.rewards.functions import RewardFunction, Scoring
from ft_host.util.imports import cause


def part_of(function: RewardFunction, scoring: Scoring, sample: int | None) -> Scoring:
    """Return what a call needs: of all completions, or of one.

    The trainer state is sent as a plain object with its fields, since a worker would have to import transformers for
    its class.
    """
    names = [name for name in scoring.columns if function.takes_all or name in function.takes]
    of = slice(None) if sample is None else slice(sample, sample + 1)
    return Scoring(
        prompts=scoring.prompts[of],
        completions=scoring.completions[of],
        completion_ids=scoring.completion_ids[of],
        opened_by_prompt=scoring.opened_by_prompt[of],
        columns={name: scoring.columns[name][of] for name in names},
        trainer_state=scoring.trainer_state and SimpleNamespace(**vars(scoring.trainer_state)),
    )


def not_picklable(function: RewardFunction, part: Scoring, error: Exception) -> DataError:
    """Return the error that says which part of a call can't be sent to another process."""
    what = next(
        (f"column {name!r} of the data" for name, values in part.columns.items() if not _picklable(values)),
        "an argument of its call",
    )
    return DataError(f"{function}: {what} can't be sent to the process that calls it: {cause(error)}")


def _picklable(values: list[Any]) -> bool:
    try:
        pickle.dumps(values)
    except Exception:
        return False
    return True
