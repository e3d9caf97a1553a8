"""Processes that have the pretended device: a server that has imported everything, and forks one for each call."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 300  # seconds that a call may take


class Server:
    """`server(function, *args)` gives what a function of a module returns in a process with the device, and raises
    AssertionError with the traceback of what it raises there. Its state is that of a fresh process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there,), daemon=False)
        self.process.start()
        there.close()

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        return self.ranks(1, function, *args)[0]

    def ranks(self, count: int, function: Callable[..., T], *args: Any) -> list[T]:
        """The same on so many ranks at once, each with a device of its own: what each returned."""
        self.connection.send((count, function, args))
        answers = self.connection.recv()
        for rank, (ok, value) in enumerate(answers):
            assert ok, f"rank {rank} of {count}:\n{value}" if count > 1 else value
        return [value for _, value in answers]

    def stop(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1"}
    from device import pretended

    pretended.start()
    import torch

    import ft_host.testing.preloaded  # noqa: F401

    torch.set_num_threads(1)  # of several, a fork has but one
    context = multiprocessing.get_context("fork")
    while True:
        try:
            count, function, args = connection.recv()
        except EOFError:
            return
        port, started = _free_port(), []
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_call, args=(there, rank, count, port, function, args))
            process.start()
            there.close()
            started.append((process, here))
        connection.send([_answer_of(*each) for each in started])


def _answer_of(process: Any, connection: Connection) -> tuple[bool, Any]:
    answer: tuple[bool, Any] = (False, f"no answer in {PATIENCE} s")
    try:
        if connection.poll(PATIENCE):
            answer = connection.recv()
    except EOFError:
        process.join()
        answer = (False, f"the process ended without an answer, with exit code {process.exitcode}")
    process.kill()
    process.join()
    return answer


def _call(connection: Connection, rank: int, count: int, port: int, function: Callable[..., Any], args: Any) -> None:
    from device import pretended

    pretended.set_devices(count)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    connection.send(answer)
    sys.stdout.flush()
    os._exit(0)  # threads of gloo and of autograd may still be there


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
