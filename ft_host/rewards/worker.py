"""The worker's side of a process that calls reward functions. It reads one request after another from a pipe.

    ("describe", spec, option, arguments, seed)
        -> ("described", RewardFunction without its call) or ("refused", why)
    ("call", spec, option, arguments, seed, scoring, seconds)
        -> ("began",), then ("done", rewards, bad, metrics, extra, notes) or ("failed", why)

It imports nothing but `ft_host.rewards` of the host, doesn't write to the parent's standard output (functions print to
standard error), and ends with its parent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import faulthandler
import json
import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from ft_host.errors import FtHostError
from ft_host.rewards.find import load_reward
from ft_host.rewards.functions import Fault, RewardFunction, Scoring, as_number, call, finish, read_rewards
from ft_host.util.imports import cause
from ft_host.util.seeds import reseed_loaded, seed_of

GRACE = 10.0  # seconds after a deadline at which a worker ends itself, if the parent hasn't


def main(descriptor: int) -> None:
    """Answer requests until the other end of the pipe is closed."""
    connection = Connection(descriptor)
    inbox: SimpleQueue[bytes] = SimpleQueue()
    # A thread reads, so that the worker notices the end of its parent during a call too. Calls run in the main
    # thread: Python handles signals nowhere else.
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    modules: dict[str, ModuleType] = {}
    functions: dict[str, RewardFunction] = {}
    with asyncio.Runner() as runner:  # one loop for all calls: connections that a function keeps stay open
        while True:
            connection.send_bytes(pickle.dumps(_answer(inbox.get(), connection, modules, functions, runner)))


def _read(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)  # its own session: this process and everything that functions started


def _answer(
    request: bytes,
    connection: Connection,
    modules: dict[str, ModuleType],
    functions: dict[str, RewardFunction],
    runner: asyncio.Runner,
) -> tuple[Any, ...]:
    try:
        kind, spec, option, arguments, seed, *rest = pickle.loads(request)
    except Exception as error:  # columns of a class that can't be unpickled here
        return ("failed", f"its arguments could not be read: {cause(error)}")
    try:
        if spec not in functions:
            reseed_loaded(seed)  # the file may be of several rewards: which of them is first depends on the machine
            functions[spec] = load_reward(spec, option, modules, arguments)
    except FtHostError as error:
        return ("refused", str(error)) if kind == "describe" else ("failed", str(error))
    function = functions[spec]
    if kind == "describe":
        return ("described", dataclasses.replace(function, call=None))
    scoring, seconds = rest
    connection.send_bytes(pickle.dumps(("began",)))
    # Of the call alone: which worker makes it, and after how many others, depends on how busy the machine is.
    step = None if scoring.trainer_state is None else scoring.trainer_state.global_step
    reseed_loaded(seed_of(seed, spec, step, scoring.prompts, scoring.completions))
    # A function may hold the GIL forever (a regular expression can): then none of our threads would run.
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=nowhere)
        try:
            return _scored(function, scoring, runner)
        except (Fault, FtHostError) as error:
            return ("failed", str(error))
        finally:
            faulthandler.cancel_dump_traceback_later()


def _scored(function: RewardFunction, scoring: Scoring, runner: asyncio.Runner) -> tuple[Any, ...]:
    result = call(function, scoring)
    if function.is_async:
        result = runner.run(finish(function, result))
    rewards, bad = read_rewards(result, len(scoring.completions))
    extra = {name: _plain(values) for name, values in scoring.extra.items()}
    return ("done", rewards, bad, scoring.metrics, extra, scoring.notes)


def _plain(values: list[Any]) -> list[Any]:
    """Return values as JSON holds them: the parent receives no objects of the user's classes. What JSON can't hold,
    such as a list that holds itself, becomes the name of its class."""
    try:
        return json.loads(json.dumps(values, default=_written, skipkeys=True))
    except Exception:  # whatever the methods of a user's class raise
        if len(values) == 1:
            return [f"({type(values[0]).__name__})"]
        return [plain for value in values for plain in _plain([value])]


def _written(value: Any) -> Any:
    number = as_number(value)
    return str(value) if number is None else number
