"""Where runs are: a folder, and what is near it. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ft_host.errors import UsageError
from ft_host.util.text import alike


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def find_runs(folder: Path) -> list[Path]:
    """Return run folders in `folder` and one level below, and `folder` itself if it is one, sorted by name.

    A folder with a metrics.jsonl but no run.json counts: it once was a run, and is listed as damaged.
    """

    def runs_in(here: Path, depth: int) -> list[Path]:
        if is_run(here) or (here / "metrics.jsonl").is_file():
            return [here]
        if not depth:
            return []
        inside = sorted(path for path in here.iterdir() if path.is_dir() and not path.name.startswith("."))
        return [run for path in inside for run in runs_in(path, depth - 1)]

    return runs_in(folder, 2)


def not_a_run(folder: Path) -> UsageError:
    """Return an error that says what is wrong with the path, and names runs with a similar name."""
    if not folder.exists():
        message = f"{folder}: no such folder"
    elif not folder.is_dir():
        message = f"{folder}: a file; expected a run's folder"
    else:
        message = f"{folder}: not a run's folder, it has no run.json"
    nearby: dict[str, Path] = {}
    for place in (folder if folder.is_dir() else folder.parent, folder.parent, Path("runs")):
        nearby.update({str(file.parent): file.parent for file in sorted(place.glob("*/run.json"))})
    likely = alike(folder.name, [run.name for run in nearby.values()], cutoff=0.5)
    close = [path for path, run in nearby.items() if run.name in likely]
    if close:
        return UsageError(f"{message}. Did you mean {' or '.join(close)}?")
    if nearby:
        some = sorted(nearby)[-3:]
        return UsageError(f"{message}. Runs nearby: {', '.join(some)}{' …' if len(nearby) > 3 else ''}")
    return UsageError(f"{message}, and there is no run nearby (`ft-host train` writes to runs/ by default)")
