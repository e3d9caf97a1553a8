"""Moves conversations on: all together in rounds, or each by itself.

A conversation is a generator. It yields what it waits for, a `Turn` of the model or `Calls` of functions of the user,
is sent what came of it, and returns its result. It knows nothing of the others, nor of how it is moved on; what an
environment does between two turns is its own business. Imports no torch.
"""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ft_host.generation import Completion, Request, Sampling
from ft_host.rollouts.tool_executor import ToolExecutor

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """A conversation waits for the model, and is sent a Completion. `number`: of the turn, from 0."""

    request: Request
    number: int


@dataclass(frozen=True)
class Calls:
    """A conversation waits for calls, made one after the other, and is sent a list of ToolResult. `last`: no turn comes
    after them."""

    calls: list[Callable[[], Any]]
    last: bool = False


Talk = Generator[Turn | Calls, Any, T]


def of_turn(sampling: Sampling, turn: int) -> Sampling:
    """Return the same sampling with other noise in each turn, since a completion keeps its number."""
    if turn == 0 or sampling.seed is None:
        return sampling
    digest = hashlib.blake2b(f"{sampling.seed} turn {turn}".encode(), digest_size=4).digest()
    return replace(sampling, seed=int.from_bytes(digest, "big") >> 1)


def in_rounds(
    talks: list[Talk[T]],
    sampling: Sampling,
    engine: Callable[[list[Request], Sampling], list[Completion]],
    caller: ToolExecutor,
    more: Callable[[bool], bool],
) -> list[T]:
    """Return the results of conversations, each of whose rounds is one call of `engine`, which waits for the slowest
    tool. `more(here)` says whether any rank has another round. The last calls are made when no turn is left."""
    wants: dict[int, Turn | Calls] = {}
    done: dict[int, T] = {}

    def go_on(index: int, value: Any = None) -> None:
        try:
            wants[index] = talks[index].send(value)
        except StopIteration as end:
            wants.pop(index, None)
            done[index] = end.value

    def call(last: bool) -> None:
        while calling := {i: want for i, want in wants.items() if isinstance(want, Calls) and want.last == last}:
            results = caller.run([want.calls for want in calling.values()])
            for index, result in zip(calling, results, strict=True):
                go_on(index, result)

    for index in range(len(talks)):
        go_on(index)
    call(last=False)
    turn = 0
    while more(bool(asking := {index: want for index, want in wants.items() if isinstance(want, Turn)})):
        answers = engine([want.request for want in asking.values()], of_turn(sampling, turn))
        for index, answer in zip(asking, answers, strict=True):
            go_on(index, answer)
        call(last=False)
        turn += 1
    call(last=True)
    return [done[index] for index in range(len(talks))]


def each_by_itself(
    talks: list[Talk[T]],
    sampling: Sampling,
    submit: Callable[[Request, Sampling], Future[Completion]],
    caller: ToolExecutor,
) -> list[T]:
    """Return the results of conversations, each of which goes on as soon as what it waits for is there. What one
    raises, or a future, is raised; the others are given up."""
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
    waiting: dict[int, Future[Any]] = {}
    done: dict[int, T] = {}

    def go_on(index: int, value: Any = None) -> None:
        try:
            want = talks[index].send(value)
        except StopIteration as end:
            done[index] = end.value
            return
        if isinstance(want, Turn):
            waiting[index] = submit(want.request, of_turn(sampling, want.number))
        else:
            waiting[index] = caller.start(want.calls)
        waiting[index].add_done_callback(partial(_tell, arrived, index))

    try:
        for index in range(len(talks)):
            go_on(index)
        while waiting:
            index = arrived.get()
            go_on(index, waiting.pop(index).result())
    finally:
        for future in waiting.values():
            future.cancel()
    return [done[index] for index in range(len(talks))]


def _tell(arrived: queue.SimpleQueue[int], index: int, future: Future[Any]) -> None:
    arrived.put(index)
