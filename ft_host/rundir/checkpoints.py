"""The checkpoints in a run's folder: which there are, and which of them are whole."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ft_host.errors import ConfigError

if TYPE_CHECKING:
    from ft_host.config import RunConfig


def checksum(path: Path) -> list[int]:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None when every file is as it was written."""
    index = checkpoint / "files.json"
    try:
        files = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{index.name}: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected[0]:
            return f"{name} has {path.stat().st_size} bytes, expected {expected[0]}"
        if checksum(path) != expected:
            return f"{name} doesn't match its checksum"
    return None


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, oldest first."""
    found = [(int(path.name.removeprefix("step-")), path) for path in folder.glob("step-*") if path.is_dir()]
    return sorted(found)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each newer one that is not."""
    damaged = []
    for _, path in reversed(steps_in(folder)):
        problem = damage(path)
        if problem is None:
            return path, damaged
        damaged.append(f"checkpoint {path.name} is damaged ({problem}); using the one before it")
    return None, damaged


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of: RUN/checkpoints/step-N."""
    return checkpoint.parent.parent


def start_of(config: RunConfig) -> Path | None:
    """The checkpoint of another run that this one begins with. Raises ConfigError where it isn't whole."""
    if config.resume_from_checkpoint is None:
        return None
    path = Path(config.resume_from_checkpoint)
    problem = damage(path)
    if problem is not None or not (run_of(path) / "run.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint: {path} is not a checkpoint of a run"
            f" ({problem or 'no run.json two folders above'}); expected RUN/checkpoints/step-N"
        )
    return path


def parent_of(config: RunConfig) -> str | None:
    """The run that this one comes from: as the config says, else the one whose checkpoint it begins with."""
    if config.parent_run or config.resume_from_checkpoint is None:
        return config.parent_run
    return str(run_of(Path(config.resume_from_checkpoint)))


def first_checkpoint(folder: Path, start: Path | None, config: RunConfig) -> tuple[Path | None, list[str]]:
    """What a run that goes on begins with: its newest whole checkpoint, or before its first one what `start_of` gave
    then; and a sentence for each that is damaged."""
    found, damaged = newest(folder)
    return found or start or start_of(config), damaged
