"""What becomes of an error that ends a run: one that people can read, with its traceback and its finding."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterable
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host import errors
from ft_host.config import RunConfig
from ft_host.diagnostics.memory_remedies import remedies_for
from ft_host.errors import (
    ConfigError,
    DataError,
    FtHostError,
    HookError,
    Interrupted,
    OutOfMemory,
    PluginBroken,
    StoppedByFinding,
)
from ft_host.rundir.checkpoints import newest, step_of
from ft_host.rundir.folder import write_json
from ft_host.training.finish import report_of
from ft_host.util.disk import disk_problem
from ft_host.util.memory import ran_out
from ft_host.util.ranks import everywhere, lost_another
from ft_host.util.text import now

if TYPE_CHECKING:
    from ft_host.monitor.watch import Monitor
    from ft_host.run import Run
    from ft_host.rundir.folder import RunFolder

HOST = Path(errors.__file__).parent
PATIENCE = 2.0  # seconds in which another process may still be writing down why it ended
# What an error is about, for programs; the first class that fits.
KINDS: tuple[tuple[type[FtHostError], str], ...] = (
    (DataError, "data"),
    (ConfigError, "config"),
    (HookError, "hook"),
    (PluginBroken, "plugin"),
)


def readable(error: BaseException, config: RunConfig, folder: Path | None) -> FtHostError:
    """Return the error of `ft_host.errors` for whatever ended a run."""
    if isinstance(error, OutOfMemory):
        ways = enumerate(remedies_for(error.phase, config), 1)
        text = "; ".join(f"({number}) {remedy.why}" for number, remedy in ways)
        return OutOfMemory(f"{error}. Remedies, the cheapest first: {text}", phase=error.phase, facts=error.facts)
    if isinstance(error, FtHostError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if ran_out(error):
        return OutOfMemory(f"memory ran out ({first_line(error)}; {places(error)})", facts={"watch/out_of_memory": ""})
    if lost_another(error):
        return FtHostError(
            "another process of the run has ended without saying why: it was killed, for memory perhaps (dmesg says), "
            "or it is on another machine, whose output has the cause",
            facts={"watch/failed": "process"},
        )
    problem = disk_problem([error], folder) if folder is not None else None
    if problem is not None:
        return FtHostError(str(problem), facts={"watch/failed": "disk", "watch/failed_place": problem.place})
    what = first_line(error)
    if isinstance(error, SystemExit):
        what = f"something ended the program by itself ({what})"
    return FtHostError(
        f"{what} ({places(error)})", facts={"watch/failed": "library", "watch/failed_place": places(error)}
    )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def places(error: BaseException) -> str:
    """Say where an error arose: the library with its version, file and line, and what of ours or the user's called."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "nowhere in Python"
    deepest = frames[-1]
    ours = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith("<")]
    called = [frame for frame in ours if HOST in Path(frame.filename).parents]
    text = f"{deepest.filename}, line {deepest.lineno}"
    package = package_of(Path(deepest.filename))
    if package is None:
        return text
    text = f"{package}: {text}"
    return f"{text}, called by {called[-1].filename}, line {called[-1].lineno}" if called else text


def package_of(file: Path) -> str | None:
    """Return "peft 0.18.0" for a file of it; None for one that no distribution has."""
    parts = file.parts
    if "site-packages" not in parts:
        return None
    module = parts[parts.index("site-packages") + 1].removesuffix(".py")
    names = packages_distributions().get(module)
    return f"{names[0]} {version(names[0])}" if names else None


# ---------------------------------------------------------------- what is kept of it


def add_hint(told: FtHostError, gone: bool) -> None:
    """Say what can't be written down where there is no folder to keep it in. `gone`: it is there no more."""
    if gone:
        told.args = (f"{told}\nrun.json could not be updated: where it is now, it still says that the run goes on",)
    if told.facts.get("watch/failed") == "library":
        told.args = (f"{told}\nFT_HOST_TRACEBACK=1 prints where it arose",)


def complete(
    told: FtHostError,
    error: BaseException,
    folder: RunFolder,
    rank: int,
    step: int | None,
    saved: Path | None,
    *,
    refused: bool,
) -> None:
    """Add to the message what the run can go on from, and where its traceback is kept. `error`: what it is made of;
    `refused`: the run has not begun a step."""
    lines = [str(told), *kept(told, folder, step, saved), *([where(folder)] if refused else [])]
    trace = None if isinstance(told, Interrupted) else keep_traceback(error, folder.path, rank, step)
    told.args = ("\n".join(lines if trace is None else [*lines, f"traceback: {trace}"]),)


def where(folder: RunFolder) -> str:
    """Say where what is known of a refused run is."""
    return f"`ft-host diagnose {folder.path}` says what is known; another run may begin in that folder"


def keep_traceback(error: BaseException, folder: Path, rank: int, step: int | None) -> Path | None:
    """Append the traceback of an error to a file of the run's folder; return the file. None for one whose message says
    all, or where nothing can be written."""
    says_all = isinstance(error, FtHostError) and error.__cause__ is None and "__notes__" not in vars(error)
    if says_all:
        return None
    file = folder / ("traceback.txt" if rank == 0 else f"traceback-rank-{rank}.txt")
    head = f"{now()}, rank {rank}" + (f", after step {step}" if step is not None else "")
    try:
        with file.open("a", encoding="utf-8", errors="backslashreplace") as out:
            out.write(f"{head}\n{''.join(traceback.format_exception(error))}\n")
    except OSError:  # the disk may be what failed, and the message says so
        return None
    return file


def facts_of(error: FtHostError, step: int) -> dict[str, Any]:
    """Return the facts of an error that ended a run, for its finding. None of one that stopped as it was asked to."""
    if isinstance(error, Interrupted | StoppedByFinding):
        return error.facts
    if isinstance(error, OutOfMemory):  # has a rule of its own
        return error.facts
    kind = next((kind for each, kind in KINDS if isinstance(error, each)), "run")
    found = {"watch/failed": kind, "watch/failed_place": "", "watch/failed_hook": "", "watch/failed_step": step}
    return found | error.facts | {"watch/failed_text": str(error)}


def write_down(
    error: FtHostError,
    folder: RunFolder,
    place: tuple[int, int],
    watch: Monitor,
    run: Run | None,
    *,
    report: bool,
    refused: bool,
) -> None:
    """Write down how a run has ended, as far as that is possible. `place`: this rank, and the number of ranks.
    `refused`: it has not begun a step."""
    rank, world_size = place
    try:
        if world_size > 1:
            write_cause(error, folder.path, rank)
        if rank == 0 and folder.manifest:
            record(error, folder, watch, run, report, refused)
    except Exception as second:  # the disk may be what failed; the first error is what the user must see
        text = "run.json could not be updated and may still say that the run goes on"
        print(f"{text}: {first_line(second)}", file=sys.stderr)


def record(error: FtHostError, folder: RunFolder, watch: Monitor, run: Run | None, report: bool, refused: bool) -> None:
    """Write down how a run has ended: in run.json, in its findings, and in its report."""
    stopped = isinstance(error, Interrupted | StoppedByFinding)
    if folder.manifest["status"] != "finished":
        status = "refused" if refused else "interrupted" if stopped else "failed"
        folder.update(status=status, finished=now(), error=str(error))
    watch.record_facts(facts_of(error, 0 if run is None else run.step), quiet=True)  # the error itself is printed
    if watch.run is not None:
        watch.finish(whole=not (stopped or refused))
    else:
        watch.flush(folder)
    if report:
        report_of(folder)


def kept(error: FtHostError, folder: RunFolder, step: int | None, saved: Path | None) -> list[str]:
    """Say what a failed run can go on from. `step`: of a run that has begun; `saved`: the checkpoint that it has
    written last."""
    if step is None and not isinstance(error, OutOfMemory):
        return []
    at_step = saved is not None and step_of(saved) == step
    if isinstance(error, StoppedByFinding) or (isinstance(error, Interrupted) and at_step):
        return []  # which its message says
    found = saved if saved is not None and saved.is_dir() else newest(folder.checkpoints)[0]
    if found is None:
        return ["No checkpoint was written"]
    return [f"{found.name} is intact: `ft-host train --resume {folder.path}` goes on from it"]


# ---------------------------------------------------------------- among processes


def write_cause(error: FtHostError, folder: Path, rank: int) -> None:
    """Write down why this process ends, for the others, which see only that it has gone."""
    known = next(each.__name__ for each in type(error).__mro__ if vars(errors).get(each.__name__) is each)
    write_json(folder / f".failed-{job()}-{rank}.json", {"name": known, "text": str(error)})


def cause_elsewhere(error: BaseException, folder: Path, rank: int) -> FtHostError | None:
    """Return the error of another process of which this one may come: it has lost the other, or is ended with it."""
    if not isinstance(error, KeyboardInterrupt) and not lost_another(error):
        return None
    until = time.monotonic() + (PATIENCE if lost_another(error) else 0.0)
    while True:
        for file in others(folder, rank):
            cause = json.loads(file.read_text(encoding="utf-8"))
            return everywhere(vars(errors)[cause["name"]](cause["text"]))
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def others(folder: Path, rank: int) -> Iterable[Path]:
    mine = f".failed-{job()}-{rank}.json"
    return sorted(file for file in folder.glob(f".failed-{job()}-*.json") if file.name != mine)


def job() -> str:
    """Return what the processes of one job have in common, and no others."""
    return os.environ.get("MASTER_PORT", "")


def forget_causes(folder: Path) -> None:
    """Remove what the processes of an earlier attempt wrote down."""
    for file in folder.glob(".failed-*.json"):
        file.unlink(missing_ok=True)
