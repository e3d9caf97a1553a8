"""Runs and commands in separate processes: several ranks of one run, a run that can be killed, `ft-host` with its exit
code and what it prints.

A process is forked from a server that has already imported torch and transformers, so it starts in a tenth of a second,
where a command line takes several. Each has one thread.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ft_host.config import RunConfig

PRELOADED = ["ft_host.testing.preloaded"]
PATIENCE = 300  # seconds that a run may take


def start(config: RunConfig, world_size: int = 1, resume: Path | None = None, dies: bool = False) -> list[BaseProcess]:
    """Start the ranks of a run, or of one that is resumed. `dies`: by SIGKILL, as soon as a checkpoint has been written
    and a step logged after it."""
    context, port = _context(), _free_port()
    processes = []
    for rank in range(world_size):
        log = Path(f"{config.output_dir}-rank-{rank}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        process = context.Process(target=_rank, args=(config, rank, world_size, port, resume, dies, log), name=str(log))
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


class Command:
    """`ft-host` with these words, in a process of its own that needn't import torch. What it starts itself are commands
    as anywhere.

    `environment` and `folder` are this process's where they aren't given. So is `sys.path`, with what PYTHONPATH names
    before it.
    """

    def __init__(self, words: list[str], environment: Mapping[str, str] | None = None, folder: Path | None = None):
        self.words = words
        self.said = Path(tempfile.mkdtemp(prefix="ft-host-command-"))
        for name in ("out", "err"):
            (self.said / name).touch()  # it may be killed before it opens them
        environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ if environment is None else environment)
        arguments = (words, environment, str(folder or Path.cwd()), self.said)
        self.process = _context().Process(target=_command, args=arguments, name=" ".join(words[:2]))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self) -> bool:
        return not self.process.is_alive()

    def finish(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Wait for it. Kills it after `timeout` seconds, and raises AssertionError with what it has said."""
        self.process.join(timeout)
        late = self.process.is_alive()
        self.process.kill()
        self.process.join()
        out, err = ((self.said / name).read_text(encoding="utf-8") for name in ("out", "err"))
        shutil.rmtree(self.said)
        assert not late, f"{self.words} didn't end in {timeout} s\n{out}{err}"
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(self.words, self.process.exitcode, out, err)


def command(
    *words: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`ft-host` with these words, as `Command` runs it: its exit code and what it printed."""
    return Command(list(words), environment, folder).finish()


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _command(words: list[str], environment: dict[str, str], folder: str, said: Path) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        with open(said / name, "w") as file:
            os.dup2(file.fileno(), descriptor)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.argv = ["ft-host", *words]
    from ft_host.cli import main

    sys.exit(main())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _dying() -> None:
    """Kill this process when `RunFolder` has written the first step after a checkpoint."""
    from ft_host.rundir.folder import RunFolder

    append = RunFolder.append

    def appended(folder: RunFolder, name: str, entry: dict[str, Any]) -> None:
        append(folder, name, entry)
        saved = [int(path.name.removeprefix("step-")) for path in folder.path.glob("checkpoints/step-*")]
        if name == "metrics.jsonl" and saved and entry["step"] > max(saved):
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.append = appended


def _rank(config: RunConfig, rank: int, world_size: int, port: int, resume: Path | None, dies: bool, log: Path) -> None:
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
    if dies:
        _dying()
    try:
        train(config, resume=resume)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # the other ranks may be waiting for this one: no goodbyes
