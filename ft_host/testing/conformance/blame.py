"""Whose fault an error is that a check ended with: the package's, or the suite's own."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from ft_host.errors import FtHostError
from ft_host.testing.conformance.check import ERROR, FAILED

SUITE = Path(__file__).parent.parent  # ft_host/testing
OURS = (OSError, MemoryError)  # of the machine, where no line of the package is on the way


def blamed(error: BaseException, package: Path) -> dict[str, Any]:
    """The fields of an outcome that a check ended with by raising. `package`: the folder of its modules, or the file.

    What the host says by name, an assertion, and whatever passed a line of the package or was raised by a library over
    what the package gave, is the package's. What the suite's own lines raise is the suite's: it should have seen it and
    said it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    inside = [
        frame
        for frame in frames
        if _within(Path(frame.filename), package) and not _within(Path(frame.filename), SUITE)  # ft-host has both
    ]
    place = (inside[-1].filename, inside[-1].lineno or 1) if inside else None
    raised = not isinstance(error, AssertionError)
    if isinstance(error, (FtHostError, AssertionError)) and str(error):
        return {"result": FAILED, "said": str(error), "place": place, "raised": raised}
    last = inside[-1] if inside else frames[-1]
    lines = str(error).splitlines() or ["no message"]
    said = f"{type(error).__name__}: {lines[0]} ({last.filename}, line {last.lineno}: {last.line})"
    if isinstance(error, AssertionError) or inside:
        return {"result": FAILED, "said": said, "place": place, "raised": raised}
    if isinstance(error, OURS) or _within(Path(frames[-1].filename), SUITE):
        return {"result": ERROR, "said": f"the suite itself went wrong: {said}", "error": error}
    return {"result": FAILED, "said": said, "raised": raised}


def _within(file: Path, place: Path) -> bool:
    return file == place or place in file.parents
