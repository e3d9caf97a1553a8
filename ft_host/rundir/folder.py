"""A run's folder: its files, and writing them so that a killed run never leaves half a file behind.

run.json        what ran: config with origins, plugins, environment, data, plan, status, result
metrics.jsonl   a line for every optimizer step and every evaluation
findings.jsonl  the findings of its diagnostics: a line for each change of a finding
events.jsonl    messages to the user
samples.jsonl   completions of held-out prompts, at each evaluation, and some of each rollout
checkpoints/    step-N/, complete or absent
model/          what `from_pretrained` loads, or the adapter
owner.json      the process that trains in it; absent when none does
before-restart-N/  logs and checkpoints of a run that was begun anew
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.rundir.checkpoints import Kept
from ft_host.rundir.owner import Owner
from ft_host.util.text import closest

FORMAT = 1


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write to a temporary file, flush to disk, rename: a reader sees the old file or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def finite_or_word(value: Any) -> Any:
    """Replace NaN and infinity by words: JSON has neither, and a line must stay valid JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


class RunFolder:
    """Reads and writes one run's folder. Only the main process of a run writes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest: dict[str, Any] = {}
        self.kept = Kept(self.path / "checkpoints")
        self.owner: Owner | None = None  # this process, while it trains in the folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run. Raises UsageError, which names the nearest run, where `path` is none."""
        folder = cls(path)
        file = folder.path / "run.json"
        if not file.is_file():
            beside = folder.path.parent
            runs = sorted(str(f.parent) for f in beside.glob("*/run.json")) if beside.is_dir() else []
            near = closest(folder.path, runs) or next(reversed(runs), None)
            hint = f"; did you mean {near}?" if near else ""
            raise UsageError(f"{folder.path} is not a run's folder: it has no run.json{hint}")
        folder.read_manifest()
        return folder

    def read_manifest(self) -> None:
        """Read run.json. Raises UsageError for one that is damaged, or written by a newer host."""
        file = self.path / "run.json"
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file} is damaged: {error}") from error
        if not isinstance(manifest, dict):
            raise UsageError(f"{file} is damaged: expected an object, found {type(manifest).__name__}")
        written = manifest.get("format")
        if type(written) is not int:
            raise UsageError(f"{file} is damaged: format is {written!r}, expected a whole number")
        if written > FORMAT:
            raise UsageError(
                f"{file} has format {written}, and this ft-host knows formats up to {FORMAT}: a newer one began the "
                "run; update ft-host"
            )
        self.manifest = manifest

    def own(self, *, take_over: bool = False) -> None:
        """Become the one process that writes into the folder, until `release`. Raises UsageError, which names the
        owner, where another process trains in it."""
        self.owner = Owner.take(self.path, take_over=take_over)

    def release(self) -> None:
        """Give the folder free at the end of a run, however it ended."""
        if self.owner is None:
            return
        try:
            status = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["status"]
        except (OSError, ValueError):
            status = None  # it has not begun, or can't be read now
        self.owner.release(ended=status != "running")
        self.owner = None

    def set_aside(self, *names: str) -> Path:
        """Move files and folders of the run to a new folder in it, and return that folder. run.json is copied."""
        numbered = (self.path / f"before-restart-{number}" for number in itertools.count(1))
        aside = next(path for path in numbered if not path.exists())
        aside.mkdir()
        shutil.copy2(self.path / "run.json", aside / "run.json")
        for name in names:
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        return aside

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def update(self, **fields: Any) -> None:
        """Set fields of run.json and write it."""
        self.manifest.update(fields)
        write_json(self.path / "run.json", self.manifest)

    def append(self, name: str, entry: dict[str, Any]) -> None:
        """Append a line to a .jsonl file of the run, in a single write."""
        line = json.dumps({key: finite_or_word(value) for key, value in entry.items()}, ensure_ascii=False)
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a .jsonl file, without a last line that a killed run left unfinished."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        return [json.loads(line) for line in lines]

    def take_over(self, other: Path, step: int) -> None:
        """Copy what another run logged up to `step`: this run continues from there."""
        for entry in RunFolder(other).read("metrics.jsonl"):
            if entry["step"] <= step:
                self.append("metrics.jsonl", entry)

    def rewind(self, step: int) -> None:
        """Delete what was logged after `step`: those steps are about to be repeated."""
        for name in ("metrics.jsonl", "samples.jsonl", "findings.jsonl"):
            path = self.path / name
            if not path.exists():
                continue
            kept = [entry for entry in self.read(name) if entry["step"] <= step]
            aside = path.with_name(f".{name}.tmp")
            aside.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept), encoding="utf-8")
            aside.rename(path)
