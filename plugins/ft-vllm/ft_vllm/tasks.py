"""Calls in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ft_host.api import FtHostError


class Task:
    """A call in a thread of its own, which nobody waits for at the end of the program."""

    def __init__(self, call: Callable[..., Any], *arguments: Any):
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(call, *arguments), daemon=True)
        self.thread.start()

    def _run(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except BaseException as error:  # raised by `result`, in the thread that asks
            self.error = error

    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self) -> None:
        self.thread.join()
        if self.error is not None:
            raise self.error

    def failure(self, patience: float | None) -> FtHostError | None:
        """Wait for the end, for so many seconds at most, and return what it failed of. Raises what isn't an
        FtHostError."""
        self.thread.join(patience)
        if not self.done():
            return FtHostError(f"vLLM has not taken the weights within {patience:g} seconds")
        if self.error is None or isinstance(self.error, FtHostError):
            return self.error
        raise self.error


def together(calls: list[Callable[[], None]], *, all_: bool = False) -> list[Any]:
    """Make calls at once, each in a thread, and wait for all. Returns the errors that they ended with; with `all_` one
    entry for each call, None where it went well. Raises what isn't an FtHostError."""
    tasks = [Task(call) for call in calls]
    found = [task.failure(None) for task in tasks]
    return found if all_ else [error for error in found if error is not None]
