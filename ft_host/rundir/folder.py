"""A run's folder: its files, and writing them so that a killed run never leaves half a file behind.

run.json        what ran: config with origins, plugins, environment, data, plan, status, result
metrics.jsonl   a line for every optimizer step and every evaluation
findings.jsonl  the findings of its diagnostics: a line for each change of a finding
events.jsonl    messages to the user
timeline.jsonl  what trainer and rollouts did when, of a run whose rollouts don't wait for training
rollouts.log    what the rollout process of an asynchronous run has printed
samples.jsonl   completions of held-out prompts, at each evaluation, and some of each rollout
rollouts/       what each rollout was learnt from, of a run that others can replay
checkpoints/    step-N/, complete or absent
model/          what `from_pretrained` loads, or the adapter
owner.json      the process that trains in it; absent when none does
traceback.txt   of an error that ended it
stacks.txt      what its threads did while it stood still
report.html     its report
before-restart-N/  logs and checkpoints of a run that was begun anew
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ft_host.errors import UsageError
from ft_host.rundir.checkpoints import Kept
from ft_host.rundir.lines import NEEDED, append_line, read_json_lines, read_whole, settled, usable
from ft_host.rundir.owner import Owner
from ft_host.util.jsonl import json_line, json_text
from ft_host.util.text import closest

FORMAT = 1
# Files that a run may have written before its first step, beside run.json.
OF_REFUSED = (
    "metrics.jsonl",
    "samples.jsonl",
    "findings.jsonl",
    "events.jsonl",
    "timeline.jsonl",
    "rollouts.log",
    "report.html",
    "traceback.txt",
    "traceback-rank-*.txt",
    "stacks.txt",
    "stacks-rank-*.txt",
)
MAPPINGS = ("config", "origins", "environment", "depends_on")  # of run.json


def write_json(path: Path, value: Any, indent: int | None = 1, *, words: bool = True) -> None:
    """Write to a temporary file, flush to disk, rename: a reader sees the old file or the new one. `words` as
    `json_text` takes it."""
    write_text(path, json_text(value, indent, words=words))


def write_text(path: Path, text: str) -> None:
    """As `write_json`, for a text."""
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


class RunFolder:
    """Reads and writes one run's folder. Only the main process of a run writes."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest: dict[str, Any] = {}
        self.kept = Kept(self.path / "checkpoints")
        self.owner: Owner | None = None  # this process, while it trains in the folder
        self.made = False  # whether this process has made the folder

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
        for name in MAPPINGS:
            if name in manifest and not isinstance(manifest[name], dict):
                found = type(manifest[name]).__name__
                raise UsageError(f"{file} is damaged: {name} is a {found}, expected an object")
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
            text = (self.path / "run.json").read_text(encoding="utf-8")
        except OSError:
            text = ""  # it has not begun, or the disk is gone
        self.owner.release(ended='"status": "running"' not in text)
        self.owner = None
        if self.made and not text:
            with contextlib.suppress(OSError):  # somebody has put something into it
                self.path.rmdir()

    def clear_refused(self) -> None:
        """Remove what a run has left that was refused before its first step. The folder must be owned. run.json goes
        last: until then it says what the folder holds."""
        for pattern in OF_REFUSED:
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        for name in ("checkpoints", "rollouts"):
            folder = self.path / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        (self.path / "run.json").unlink()

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
        append_line(self.path / name, entry)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a .jsonl file, without a last line that a killed run left unfinished. Raises UsageError,
        which names file and line, for one that a run can't go on with."""
        return read_whole(self.path / name)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl that can be read, each step and each evaluation once."""
        return usable(read_json_lines(self.path / "metrics.jsonl")[0])

    def check_logs(self) -> None:
        """Raise UsageError, which names file and line, where the run can't go on from its logs."""
        for name in NEEDED:
            self.read(name)

    def take_over(self, other: Path, step: int) -> list[str]:
        """Copy what another run logged up to `step`: this run continues from there. Returns what can't be read."""
        rows, problems = read_json_lines(other / "metrics.jsonl")
        for entry in usable(rows):
            if entry["step"] <= step:
                self.append("metrics.jsonl", entry)
        return [f"{other / 'metrics.jsonl'} is not taken over whole: {problem}" for problem in problems]

    def rewind(self, step: int) -> None:
        """Delete what was logged after `step`: those steps are about to be repeated. Of an evaluation at `step` that
        was stopped before its metrics were logged, its samples are deleted too: it is about to be repeated."""
        for name in NEEDED:
            path = self.path / name
            if not path.exists():
                continue
            kept = [entry for entry in self.read(name) if entry["step"] <= step]
            if name == "metrics.jsonl":
                kept = settled(kept)
            elif name == "samples.jsonl" and step != self.last_evaluation():
                kept = [entry for entry in kept if entry["step"] != step or entry.get("kind") == "rollout"]
            write_text(path, "".join(map(json_line, kept)))

    def last_evaluation(self) -> int:
        """Return the step that was evaluated last, -1 if there is none."""
        return max((entry["step"] for entry in self.metrics() if entry["kind"] == "eval"), default=-1)
