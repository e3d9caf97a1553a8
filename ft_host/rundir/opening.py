"""A run's folder as training begins: made for a new run, or opened to go on with one."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.paths import was_refused
from ft_host.config.rollout import RolloutConfig
from ft_host.distributed.processes import on_main
from ft_host.errors import UsageError
from ft_host.rundir.checkpoints import clean, first_checkpoint, parent_of, run_of, start_of, step_of
from ft_host.rundir.continuing import check_rows_per_step, check_same, check_same_model, check_same_start
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import new_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ft_host.config import RunConfig
    from ft_host.registry import PluginInfo

LOGS = (
    "metrics.jsonl",
    "samples.jsonl",
    "findings.jsonl",
    "events.jsonl",
    "timeline.jsonl",
    "rollouts",
    "rollouts.log",
    "report.html",
)
OUTPUT = ("checkpoints", "model", "merged")


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """What the user says of a run that goes on, beside its fields."""

    restart: bool = False  # begin at step 0, and keep what there is aside
    take_over: bool = False  # even where an owner on another host may live
    allow_changed: tuple[str, ...] = ()  # fields whose files may differ from those that the run began with


def open_folder(
    config: RunConfig, method: PluginInfo, resume: Path | None, accelerator: Accelerator, asked: Resuming
) -> RunFolder:
    """Return the folder that the run is in, owned by the main process. All ranks must call it. Raises UsageError where
    another process trains in it, and for a new run where it holds one."""
    opened: list[RunFolder] = []

    def own() -> Path:
        opened.append(_opened(config, method, resume, asked.take_over))
        return opened[0].path

    path = on_main(accelerator, own)
    if opened:
        return opened[0]
    return RunFolder.open(path) if resume else RunFolder(path)


def _opened(config: RunConfig, method: PluginInfo, resume: Path | None, take_over: bool) -> RunFolder:
    if resume:
        folder = RunFolder.open(resume)
        folder.own(take_over=take_over)
        folder.read_manifest()  # of its last owner
        return folder
    return new_folder(config.output_dir, method.name, take_over=take_over)


def new_folder(place: str, method: str, *, take_over: bool = False) -> RunFolder:
    """Return the folder of a new run, owned: `place`, or where that is empty, one that is named after the method. What
    a run has left in it that was refused is removed. Raises UsageError where another process trains in it, or where it
    holds a run."""
    if place:
        folder = RunFolder(place)
        folder.made = not folder.path.exists()
        folder.path.mkdir(parents=True, exist_ok=True)
    else:
        folder = RunFolder(claim_folder(method))
        folder.made = True
    folder.own(take_over=take_over)
    if was_refused(folder.path):
        folder.clear_refused()
    if (folder.path / "run.json").exists():
        folder.release()
        raise UsageError(
            f"output_dir: {folder.path} already holds a run; resume it with `ft-host train --resume {folder.path}`"
        )
    return folder


def claim_folder(method: str) -> Path:
    """Make and return runs/METHOD-DATE-TIME, with a number where another run began in the same second."""
    name = f"runs/{method}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    Path("runs").mkdir(exist_ok=True)
    for path in itertools.chain([Path(name)], (Path(f"{name}-{number}") for number in itertools.count(2))):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError  # the numbers don't end


def write_manifest(
    folder: RunFolder,
    config: RunConfig,
    chosen: list[PluginInfo],
    origins: dict[str, str],
    inputs: Callable[[], dict[str, Any]],
    accelerator: Accelerator,
    *,
    asked: Resuming,
    resume: bool,
    start: Path | None,
    checkpoint: Path | None,
) -> list[str]:
    """Begin or update run.json. Returns warnings for the user. All ranks must call it.

    The first of `chosen` is the method. `inputs` gives the fields `data` and `depends_on`: what the run reads. `start`
    is a checkpoint of another run, `checkpoint` the one that this run goes on from. Raises ConfigError or
    UsageError where the run can't go on so.
    """

    def write() -> list[str]:
        refused = resume and was_refused(folder.path)  # nothing of it has to be the same
        if (resume and not asked.restart and not refused) or start is not None:
            check_rows_per_step(folder if resume else RunFolder.open(run_of(start)), config, accelerator.num_processes)
        manifest = new_manifest(config, origins, chosen, accelerator.device.type, accelerator.num_processes)
        manifest |= {"parent": parent_for(config, folder), **inputs()}
        if resume:
            extra, warnings = {}, []
            if not asked.restart and not refused:
                step = step_of(checkpoint) if checkpoint is not None else 0
                extra, warnings = check_same(folder, manifest, config, asked.allow_changed, step)
            warnings += _make_room(folder, checkpoint, asked)
            manifest["created"] = folder.manifest.get("created", manifest["created"])
            folder.update(**manifest, **extra)
            return warnings
        warnings = []
        if start is not None:
            warnings = check_same_start(RunFolder.open(run_of(start)), manifest, config, asked.allow_changed)
        if isinstance(config, RolloutConfig) and config.replay is not None:
            warnings += check_same_model(RunFolder.open(config.replay), manifest)
        folder.update(**manifest, saved=None)
        if start is not None:
            warnings += folder.take_over(run_of(start), step_of(start))
        return warnings

    return on_main(accelerator, write)


def parent_for(config: RunConfig, folder: RunFolder) -> str | None:
    """Return the run that this one comes from. It is none where a refused run's own folder is named: this run has taken
    its place."""
    parent = parent_of(config)
    return None if parent is not None and Path(parent).resolve() == folder.path.resolve() else parent


def _make_room(folder: RunFolder, checkpoint: Path | None, asked: Resuming) -> list[str]:
    """Set aside what a run that begins at its first step would delete, and say where it is."""
    if asked.restart:
        aside = folder.set_aside(*LOGS, *OUTPUT)
        folder.update(saved=None, result=None)
        said = [f"the run begins anew; what there was is in {aside}"]
    elif checkpoint is not None and checkpoint.parent == folder.checkpoints:
        return []
    elif any(line.get("kind") == "train" for line in folder.read("metrics.jsonl")):
        aside = folder.set_aside(*LOGS)
        said = [f"the run was stopped before its first checkpoint and begins again; its logs are in {aside}"]
    else:
        return []
    if checkpoint is not None:  # of another run
        said += folder.take_over(run_of(checkpoint), step_of(checkpoint))
    return said


def checkpoint_to_begin_with(
    folder: RunFolder, config: RunConfig, start: Path | None, accelerator: Accelerator, *, resume: bool, asked: Resuming
) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that the run goes on from, None for one from the beginning, and sentences about what was
    found. All ranks must call it. Raises UsageError where there were checkpoints and none is whole."""

    said: list[str] = []

    def find() -> tuple[Path | None, list[str]]:
        if not resume:
            return start, []
        if folder.owner is not None and folder.owner.taken_from:
            said.append(folder.owner.taken_from)
        clean(folder.checkpoints)
        if asked.restart:
            return start_of(config), said
        found, damaged = first_checkpoint(folder.checkpoints, start, config, _saved(folder, config))
        if found is not None and found.parent == folder.checkpoints:
            folder.kept.trust(found)
        return found, [*said, *damaged]

    return on_main(accelerator, find)


def _saved(folder: RunFolder, config: RunConfig) -> int | None:
    """Return the last step that the run is known to have saved. Before 0.6, run.json doesn't say: it is read off the
    steps that were logged."""
    if "saved" in folder.manifest:
        return folder.manifest["saved"]
    if not config.save_steps:
        return None
    last = max((line["step"] for line in folder.read("metrics.jsonl") if line["kind"] == "train"), default=0)
    return (last - 1) // config.save_steps * config.save_steps or None if last else None
