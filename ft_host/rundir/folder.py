"""A run's folder: its files, and writing them so that a killed run never leaves half a file behind.

run.json        what ran: config with origins, plugins, environment, data, plan, status, result
metrics.jsonl   a line for every optimizer step and every evaluation
findings.jsonl  the findings of its diagnostics: a line for each change of a finding
events.jsonl    messages to the user
samples.jsonl   completions of held-out prompts, at each evaluation, and some of each rollout
checkpoints/    step-N/, complete or absent
model/          what `from_pretrained` loads, or the adapter
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.rundir.checkpoints import Kept
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

    @classmethod
    def create(cls, path: Path, manifest: dict[str, Any]) -> RunFolder:
        """Create a run in `path`. Raises UsageError where there is a run already."""
        folder = cls(path)
        if (path / "run.json").exists():
            raise UsageError(f"output_dir: {path} already holds a run; resume it with `ft-host train --resume {path}`")
        path.mkdir(parents=True, exist_ok=True)
        folder.update(**manifest)
        return folder

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
        try:
            folder.manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} is damaged: {error}") from error
        return folder

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
