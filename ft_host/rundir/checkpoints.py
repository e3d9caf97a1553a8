"""The checkpoints in a run's folder: which there are, which are whole, and which are kept.

Only folders `step-N` are checkpoints. Anything else in checkpoints/ (`step-3-best`, a file `step-12`, an empty folder)
belongs to somebody else: it is neither used nor counted nor deleted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft_host.config.rollout import RolloutConfig
from ft_host.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from ft_host.config import RunConfig

NAME = re.compile(r"step-(0|[1-9][0-9]*)", re.ASCII)
ASIDE = re.compile(r"\.step-[0-9]+\.(tmp|old)", re.ASCII)  # being written, and being replaced or deleted
INDEX = "files.json"
NEEDED = ("progress.json", "rng-0.json")  # beside a file in state/, what every checkpoint has


def checksum(path: Path) -> list[int]:
    """Return the size of a file and the CRC-32 of its content."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


# ---------------------------------------------------------------- the index of a checkpoint


def index_of(files: dict[str, list[int]]) -> dict[str, Any]:
    """Return the content of files.json: the files with size and checksum, and the index's own count and checksum."""
    return {"files": files, "count": len(files), "checksum": _sum(files)}


def _sum(files: dict[str, list[int]]) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _read_index(checkpoint: Path) -> tuple[dict[str, list[int]], str | None]:
    """Return the files that files.json lists, and what is wrong with it. Before 0.6 it was the list alone."""
    try:
        written = json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"{INDEX} is missing"
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{INDEX} can't be read: {error}"
    signed = isinstance(written, dict) and isinstance(written.get("files"), dict)
    files = written["files"] if signed else written
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        return {}, f"{INDEX} isn't a list of files with size and checksum"
    if signed and (written.get("count"), written.get("checksum")) != (len(files), _sum(files)):
        return {}, f"{INDEX} doesn't match its own count and checksum"
    lacking = [name for name in NEEDED if name not in files]
    if not any(name.startswith("state/") for name in files):
        lacking.append("state/")
    if lacking:
        return {}, f"{INDEX} doesn't list {', '.join(lacking)}"
    return files, None


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)


def _unlisted(checkpoint: Path, files: dict[str, list[int]]) -> str | None:
    """Return the first file that is read when the run goes on but isn't listed, so that nothing vouches for it."""
    read = [*checkpoint.glob("rng-*.json"), *checkpoint.glob("buffer-*.json"), *checkpoint.glob("state/*")]
    read += checkpoint.glob("model/*.safetensors")
    names = sorted(path.relative_to(checkpoint).as_posix() for path in read if path.is_file())
    return next((name for name in names if name not in files and not Path(name).name.startswith("._")), None)


def damage(checkpoint: Path, *, contents: bool = True) -> str | None:
    """Return what is wrong with a checkpoint; None where every file is as it was written. Without `contents` the files
    aren't read, and only their sizes are compared."""
    files, problem = _read_index(checkpoint)
    if problem is not None:
        return problem
    for name, expected in files.items():
        path = checkpoint / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected[0]:
                return f"{name} has {path.stat().st_size} bytes, expected {expected[0]}"
            if contents and checksum(path) != expected:
                return f"{name} doesn't match its checksum"
        except OSError as error:
            return f"{name} can't be read: {error.strerror}"
    extra = _unlisted(checkpoint, files)
    return f"{INDEX} doesn't list {extra}" if extra else None


# ---------------------------------------------------------------- which there are


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in a folder, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def step_of(checkpoint: Path) -> int:
    """Return N of a folder `step-N`. Raises ConfigError for any other name."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ConfigError(f"{checkpoint} is not a checkpoint; expected RUN/checkpoints/step-N")
    return int(match[1])


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, and a sentence for each newer one that is not."""
    damaged = []
    for _, path in reversed(steps_in(folder)):
        problem = damage(path)
        if problem is None:
            return path, [f"{each}; going on from {path.name}" for each in damaged]
        damaged.append(f"checkpoint {path.name} is damaged ({problem})")
    return None, damaged


# ---------------------------------------------------------------- which are kept


class Kept:
    """Which checkpoints of a run are whole, as far as this process knows, and the deletion of old ones.

    What this process wrote or verified isn't read again at each save: of it only the sizes are compared.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._whole: set[str] = set()  # names that were written or verified here

    def trust(self, checkpoint: Path) -> None:
        """Note a checkpoint that this process has written or verified."""
        self._whole.add(checkpoint.name)

    def whole(self) -> list[Path]:
        """Return the whole checkpoints, oldest first."""
        found = []
        for _, path in steps_in(self.folder):
            if damage(path, contents=path.name not in self._whole) is None:
                self._whole.add(path.name)
                found.append(path)
            else:
                self._whole.discard(path.name)
        return found

    def rotate(self, limit: int | None) -> None:
        """Delete the oldest whole checkpoints until `limit` are left, and what killed saves have left behind. Damaged
        ones don't count and stay. Raises OSError."""
        for path in self.whole()[:-limit] if limit else []:
            if not path.is_symlink():  # somebody keeps it elsewhere
                self._whole.discard(path.name)
                remove(path)
        for path in litter(self.folder):
            shutil.rmtree(path)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that a kill in the middle leaves no half of one. Raises
    OSError."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def put(aside: Path, place: Path) -> str | None:
    """Give a checkpoint that was written aside its name. An older one of that name is deleted only afterwards; what
    isn't a checkpoint is renamed, and a sentence says so. Raises OSError."""
    old, said = place.with_name(f".{place.name}.old"), None
    shutil.rmtree(old, ignore_errors=True)
    if os.path.lexists(place) and not _is_ours(place):
        other = place.with_name(f"{place.name}.not-a-checkpoint")
        place.rename(other)
        said = f"{place} was no checkpoint; it is now called {other.name}"
    elif place.exists():
        place.rename(old)
    aside.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return said


def _is_ours(place: Path) -> bool:
    """Return whether a folder is empty or has a part of a checkpoint."""
    if not place.is_dir() or place.is_symlink():
        return False
    names = {path.name for path in place.iterdir()}
    return not names or not names.isdisjoint({INDEX, "state", *NEEDED})


def litter(folder: Path) -> Iterator[Path]:
    """Yield the folders that killed saves and deletions have left. Only the run's owner may delete them."""
    if folder.is_dir():
        found = [path for path in folder.iterdir() if ASIDE.fullmatch(path.name)]
        yield from [path for path in found if path.is_dir() and not path.is_symlink()]


def clean(folder: Path) -> None:
    """Tidy up after a kill: a checkpoint that was being replaced gets its name back, the rest is deleted. Only the
    run's owner may call it. Raises OSError."""
    for path in litter(folder):
        place = folder / path.name.removeprefix(".").removesuffix(".old")
        if path.suffix == ".old" and not place.exists() and damage(path) is None:
            path.rename(place)
        else:
            shutil.rmtree(path)


# ---------------------------------------------------------------- where a run begins


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint is of: RUN/checkpoints/step-N."""
    return checkpoint.parent.parent


def start_of(config: RunConfig) -> Path | None:
    """Return the checkpoint of another run that this one begins with. Raises ConfigError where it isn't whole."""
    if config.resume_from_checkpoint is None:
        return None
    path = Path(config.resume_from_checkpoint)
    problem = damage(path)
    if problem is None and NAME.fullmatch(path.name) is None:
        problem = f"it is called {path.name}"
    if problem is not None or not (run_of(path) / "run.json").is_file():
        raise ConfigError(
            f"resume_from_checkpoint: {path} is not a checkpoint of a run"
            f" ({problem or 'no run.json two folders above'}); expected RUN/checkpoints/step-N"
        )
    return path


def parent_of(config: RunConfig) -> str | None:
    """Return the run that this one comes from: as the config says, else the one whose rollouts it learns from, or whose
    checkpoint it begins with."""
    replay = config.replay if isinstance(config, RolloutConfig) else None
    if config.parent_run or replay or config.resume_from_checkpoint is None:
        return config.parent_run or replay
    return str(run_of(Path(config.resume_from_checkpoint)))


def first_checkpoint(
    folder: Path, start: Path | None, config: RunConfig, saved: int | None
) -> tuple[Path | None, list[str]]:
    """Return what a run that goes on begins with, and a sentence for each checkpoint that is damaged.

    It is the newest whole checkpoint. Where the run has written none yet, it is what `start_of` gave then, or None: the
    run begins at step 0. `saved` is the last step that the run is known to have saved. Raises UsageError where there
    were checkpoints and none is whole: to begin at step 0 would delete what was logged.
    """
    found, damaged = newest(folder)
    if found is not None:
        return found, damaged
    run = folder.parent
    anew = f"`ft-host train --resume {run} --restart` begins anew and keeps the old files aside"
    if damaged:
        raise UsageError(f"{run} can't go on, no checkpoint of it is whole: {'; '.join(damaged)}. {anew}")
    if saved:
        there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        instead = f"{folder} holds {', '.join(there)}" if there else f"{folder} is empty or gone"
        raise UsageError(
            f"{run} can't go on, a checkpoint was written at step {saved} and there is none: {instead}. {anew}"
        )
    return start or start_of(config), []
