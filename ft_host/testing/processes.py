"""Runs in separate processes: several ranks of one run, or a run that can be killed.

A process is forked from a server that has already imported torch and transformers, so it starts in a tenth of a second,
where a command line takes several. Each has one thread.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

from ft_host.config import RunConfig

PRELOADED = ["ft_host.testing.preloaded"]
PATIENCE = 300  # seconds that a run may take


def start(config: RunConfig, world_size: int = 1, resume: Path | None = None) -> list[BaseProcess]:
    """Start the ranks of a run, or of one that is resumed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    processes = []
    for rank in range(world_size):
        log = Path(f"{config.output_dir}-rank-{rank}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        process = context.Process(target=_rank, args=(config, rank, world_size, port, resume, log), name=str(log))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list[BaseProcess]) -> None:
    """Wait for the ranks of a run. AssertionError with what a rank said where it failed; the others are killed."""
    try:
        waiting = list(processes)
        while waiting:
            multiprocessing.connection.wait([process.sentinel for process in waiting], timeout=PATIENCE)
            ended = [process for process in waiting if not process.is_alive()]
            assert ended, f"nothing ended in {PATIENCE} s: {', '.join(process.name for process in waiting)}"
            for process in ended:
                said = Path(process.name).read_text() if Path(process.name).exists() else ""
                assert process.exitcode == 0, f"{process.name}: exit code {process.exitcode}\n{said}"
            waiting = [process for process in waiting if process not in ended]
    finally:
        for process in processes:
            process.kill()
            process.join()


def train_apart(config: RunConfig, world_size: int = 1, resume: Path | None = None) -> None:
    """Train in `world_size` processes, and wait for them."""
    finish(start(config, world_size, resume))


def run_command(argv: list[str]) -> int:
    """`ft-host` with these words, in this process. Gives its exit code, and raises the error that it would print."""
    from ft_host.cli import dispatch

    return dispatch(argv)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _rank(config: RunConfig, rank: int, world_size: int, port: int, resume: Path | None, log: Path) -> None:
    import torch

    from ft_host.training.launch import train

    torch.set_num_threads(1)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
    try:
        train(config, resume=resume)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the other ranks may be waiting for this one: no goodbyes
