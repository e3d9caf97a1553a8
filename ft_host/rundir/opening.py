"""A run's folder as training begins: made for a new run, or opened to go on with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.distributed.processes import agreed
from ft_host.rundir.checkpoints import first_checkpoint, parent_of, run_of, step_of
from ft_host.rundir.folder import RunFolder
from ft_host.rundir.manifest import check_rows_per_step, check_same_data, fresh_folder, new_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ft_host.config import RunConfig
    from ft_host.registry import PluginInfo


def open_folder(config: RunConfig, method: PluginInfo, resume: Path | None, accelerator: Accelerator) -> RunFolder:
    """The folder that the run is in, not yet written. All ranks must call it."""
    if resume:
        return RunFolder.open(resume)
    return RunFolder(config.output_dir or agreed(accelerator, fresh_folder(method.name)))


def write_manifest(
    folder: RunFolder,
    config: RunConfig,
    chosen: list[PluginInfo],
    origins: dict[str, str],
    described: dict[str, Any],
    accelerator: Accelerator,
    *,
    resume: bool,
    start: Path | None,
) -> list[str]:
    """Begin or update run.json; the first of `chosen` is the method, `described` the data, `start` a checkpoint of
    another run. Gives warnings for the user. Raises ConfigError or UsageError where the run can't go on so."""
    if resume or start is not None:
        other = folder if resume else RunFolder.open(run_of(start))
        check_rows_per_step(other, config, accelerator.num_processes)
    if not accelerator.is_main_process:
        return []
    manifest = new_manifest(config, chosen[0], origins, chosen, accelerator)
    manifest |= {"data": described, "parent": parent_of(config)}
    if resume:
        manifest["created"] = folder.manifest["created"]
        warnings = check_same_data(folder, manifest)
        folder.update(**manifest)
        return warnings
    folder.manifest = RunFolder.create(folder.path, manifest).manifest
    if start is not None:
        folder.take_over(run_of(start), step_of(start))
    return []


def checkpoint_to_begin_with(
    folder: RunFolder, config: RunConfig, start: Path | None, accelerator: Accelerator, *, resume: bool
) -> tuple[Path | None, list[str]]:
    """The checkpoint that the run goes on from, None for one from the beginning, and a sentence for each that is
    damaged. All ranks must call it."""
    found = first_checkpoint(folder.checkpoints, start, config) if resume else (start, [])
    return agreed(accelerator, found)
