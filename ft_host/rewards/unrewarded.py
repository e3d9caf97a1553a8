"""Completions to which no reward applies: counted in a row, and the error that ends the run."""

from __future__ import annotations

import threading

from ft_host.errors import FtHostError


class Unrewarded:
    """Completions since the last one that had a reward, over the calls of a run. `most`: more of them end it."""

    def __init__(self, most: int):
        self.most, self.count = most, 0
        self.lock = threading.Lock()  # many threads score at once

    def add(self, values: list[list[float | None]], names: list[str]) -> None:
        """Count completions, `values[completion][reward]`, with the names of the rewards. Raises FtHostError where too
        many in a row have none.
        """
        with self.lock:
            for row in values:
                self.count = self.count + 1 if all(value is None for value in row) else 0
                if self.count > self.most:
                    raise none_at_all(names, f"{self.most + 1} completions in a row (max_reward_failures: {self.most})")


def none_at_all(names: list[str], where: str) -> FtHostError:
    """Return the error of completions to which no reward applies."""
    which = ", ".join(names)
    return FtHostError(
        f"no reward for {where}: {which} gave no value; a function that returns None says that it doesn't apply",
        facts={"watch/unrewarded": which},
    )
