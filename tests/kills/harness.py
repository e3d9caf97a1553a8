"""Starts runs, kills what belongs to them, goes on with them, and compares what they leave with a run that never was
killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import torch
from kills.settings import Setting, config_of
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ft_host.config import RunConfig
from ft_host.rundir.folder import RunFolder
from ft_host.testing.processes import PRELOADED

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "HUP": signal.SIGHUP}
PATIENCE = 90.0  # seconds that a run may take to end, once it was killed or when it goes on
ORPHANS = 20.0  # seconds in which everything that a killed run had started must be gone


# ---------------------------------------------------------------- starting


def start(config: RunConfig, ranks: int, resume: Path | None, log: Path) -> BaseProcess:
    """Start a run in a process of its own or, with several ranks, the agent of torchrun that starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_main, args=(config, ranks, resume, log), name=str(log))
    process.start()
    return process


def _main(config: RunConfig, ranks: int, resume: Path | None, log: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, which a run respects
    multiprocessing.set_start_method("fork", force=True)  # of workers, as on the command line
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if ranks == 1:
        os._exit(_train(config, resume))
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"kills-{os.getpid()}",
        local_addr="localhost",
        max_restarts=0,
        start_method="fork",  # of what is imported already: a command line would import everything again
    )
    elastic_launch(agent, _rank)(config, resume)


def _rank(config: RunConfig, resume: Path | None) -> None:
    """Train as one of several ranks. The agent waits for what a rank returns, so one that is done must."""
    code = _train(config, resume)
    if code:
        os._exit(code)


def _train(config: RunConfig, resume: Path | None) -> int:
    """Train, and return the exit code of the command line."""
    from ft_host.errors import FtHostError
    from ft_host.training.launch import train

    try:
        train(config, resume=resume)
    except FtHostError as error:
        print(f"ft-host: {error}", flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


# ---------------------------------------------------------------- killing


@dataclass
class Kill:
    """What was done to a run."""

    signal: str
    target: str = "nothing"  # process, worker, rank, all, parent
    moment: str = ""  # seconds after the start, or the checkpoint within which
    reached: bool = False  # whether there was something to kill
    running_since: float = 0.0  # when run.json was written last, if it said "running" then
    notes: list[str] = field(default_factory=list)


def tree(process: BaseProcess) -> list[psutil.Process]:
    """The process and all that it has started, parents first."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def child_of(process: psutil.Process, parent: psutil.Process) -> bool:
    """Whether `parent` started it. One that has ended since the tree was read is nobody's child."""
    try:
        return process.ppid() == parent.pid
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> str:
    """The end of its command line, for a message; a process may end while the message is being written."""
    try:
        return " ".join(process.cmdline())[-60:]
    except psutil.NoSuchProcess:
        return "ended meanwhile"


def targets_of(found: list[psutil.Process], ranks: int) -> dict[str, list[psutil.Process]]:
    """What a kill can be aimed at now, and the processes that it may choose one of; of `all`, every one."""
    if not found:
        return {}
    children = [process for process in found[1:] if child_of(process, found[0])]
    mains = found[:1] if ranks == 1 else [found[0], *children]
    workers = [process for process in found if process not in mains]
    given = {"process" if ranks == 1 else "parent": found[:1], "all": found[::-1], "worker": workers}
    if ranks > 1:
        given["rank"] = children
    return {target: processes for target, processes in given.items() if processes}


def wait_for_a_moment(process: BaseProcess, folder: Path, seconds: float, noise: random.Random) -> str:
    """Wait for a random moment of a run that takes `seconds`. Returns which it is."""
    if noise.random() < 1 / 3:
        step, late = noise.choice([3, 6, 9]), noise.uniform(0, 0.04)
        wait_for_file(process, folder / "checkpoints" / f".step-{step}.tmp")
        time.sleep(late)
        return f"{late:.3f} s into the checkpoint of step {step}"
    late = noise.uniform(0.05, seconds)
    process.join(late)
    return f"{late:.2f} s after the start"


def wait_for_file(process: BaseProcess, path: Path) -> None:
    """Wait until a file is there, or the process has ended."""
    until = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < until and not path.exists():
        time.sleep(0.001)


def kill_something(
    process: BaseProcess, folder: Path, ranks: int, noise: random.Random, moment: Callable[..., str]
) -> tuple[Kill, list[psutil.Process]]:
    """Wait for a moment, and kill something of the run. Returns what was done, and the processes that it had then."""
    kill = Kill(signal=noise.choice(["KILL", "KILL", "KILL", "TERM", "HUP"]))
    kill.moment = moment(process, folder, noise=noise)
    found = tree(process)
    if status(folder) == "running":  # of this process, or still of one that was killed before
        kill.running_since = (folder / "run.json").stat().st_mtime
    targets = targets_of(found, ranks)
    kill.target = noise.choice(sorted(targets)) if targets else "nothing"
    chosen = targets.get(kill.target, [])
    for each in chosen if kill.target == "all" else [noise.choice(chosen)] if chosen else []:
        try:
            each.send_signal(SIGNALS[kill.signal])
            kill.reached = True
        except psutil.NoSuchProcess:
            kill.notes.append(f"{each.pid} had ended")
    return kill, found


def wait_for_the_end(process: BaseProcess, found: list[psutil.Process], kill: Kill, ended: bool) -> None:
    """Wait until nothing of a run is left. AssertionError with what is left. `ended`: it must be soon."""
    process.join(PATIENCE)
    assert process.exitcode is not None, f"{kill}: the run neither ended nor went on in {PATIENCE:.0f} s"
    until = time.monotonic() + (ORPHANS if ended else PATIENCE)
    while (left := [each for each in found if is_alive(each)]) and time.monotonic() < until:
        time.sleep(0.02)
    names = [f"{each.pid} ({command_of(each)})" for each in left]
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    assert not left, f"{kill}: still there {ORPHANS:.0f} s later: {names}"


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and that nobody has waited for doesn't."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- one trial


def status(folder: Path) -> str | None:
    file = folder / "run.json"
    return json.loads(file.read_text(encoding="utf-8"))["status"] if file.is_file() else None


def killed_and_finished(
    setting: Setting,
    shared: Path,
    folder: Path,
    seed: int,
    moment: Callable[..., str],
    goes_on: Callable[[Path], None] = lambda folder: None,
) -> list[Kill]:
    """Run a setting in `folder`, kill it once or more, and go on until it is finished. Returns the kills. `moment`
    waits for one, and says which it is; `goes_on` is called before the run goes on."""
    noise = random.Random(f"{setting.name} {seed}")
    config, log, kills = config_of(setting, shared, folder), Path(f"{folder}.log"), []
    for again in range(4):
        # A run that was killed before it had a run.json begins anew: there is nothing to go on with.
        began = time.time()
        if status(folder):
            goes_on(folder)
        process = start(config, setting.ranks, folder if status(folder) else None, log)
        if again < 3 and noise.random() < (1.0 if again == 0 else 0.3):
            kill, found = kill_something(process, folder, setting.ranks, noise, moment)
            asked_to_stop = kill.signal != "KILL" and kill.target in ("process", "all") and kill.running_since > began
            wait_for_the_end(process, found, kill, ended=kill.target != "worker")
            kills += [kill] if kill.reached else []
            if asked_to_stop and kill.reached:
                assert status(folder) in ("interrupted", "finished"), f"{kill}: {status(folder)}\n{said(log)}"
        else:
            process.join(PATIENCE)
            assert process.exitcode == 0, f"after {kills}: exit code {process.exitcode}\n{said(log)}"
        if status(folder) == "finished":
            return kills
    raise AssertionError(f"not finished after {kills}\n{said(log)}")


def said(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


# ---------------------------------------------------------------- comparing


def differences(whole: Path, killed: Path, steps: int) -> list[str]:
    """What a run that was killed has left otherwise than one that wasn't: lines, weights, optimizer, random states."""
    found = []
    for name in ("metrics.jsonl", "samples.jsonl"):
        one, other = (_lines(folder, name) for folder in (whole, killed))
        if len(one) != len(other):
            found.append(f"{name}: {len(one)} lines and {len(other)}")
        for number, (mine, theirs) in enumerate(zip(one, other, strict=False), 1):
            keys = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
            if keys:
                found.append(f"{name}, line {number}: {keys[0]} is {mine.get(keys[0])} and {theirs.get(keys[0])}")
                break
    last = f"checkpoints/step-{steps}"
    for part in (last, "model"):
        one, other = (_contents(folder / part) for folder in (whole, killed))
        assert one, f"{whole / part} is empty"
        found += [f"{part}/{name}" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    return found


def _lines(folder: Path, name: str) -> list[dict]:
    """The lines of a file, without what depends on the clock."""
    return [_timeless(line) for line in RunFolder(folder).read(name)]


def _timeless(value: Any) -> Any:
    """JSON without the entries that measure time or memory."""
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if not str(key).startswith("perf/")}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _contents(folder: Path) -> dict[str, Any]:
    """What the files of a folder hold: JSON, each tensor of state/, and the bytes of others."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "files.json" or path.is_dir() or path.parent.name == "state":
            continue
        found[name] = _timeless(json.loads(path.read_bytes())) if path.suffix == ".json" else path.read_bytes()
    if (folder / "state").is_dir():
        whole = folder.parent / f"{folder.name}.pt"
        dcp_to_torch_save(folder / "state", whole)
        found |= dict(_flat("state", torch.load(whole, weights_only=True)))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each tensor of nested dicts and lists by its name, as its shape and bytes, and each other value."""
    if isinstance(value, torch.Tensor):
        yield (
            name,
            (str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()),
        )
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{name}/{key}", each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _flat(f"{name}/{index}", each)
    else:
        yield name, value
