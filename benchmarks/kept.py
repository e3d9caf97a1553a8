"""Runs that a benchmark makes once and finds again when it is called a second time."""

from __future__ import annotations

import shutil
from pathlib import Path

from ft_host.rundir.record import read_run


def finished(run: Path) -> bool:
    """Whether the run is there and whole; one that isn't is put out of the way."""
    if (run / "run.json").exists() and read_run(run).status == "finished":
        return True
    shutil.rmtree(run, ignore_errors=True)
    return False
