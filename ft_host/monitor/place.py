"""Where a thread is, in words: the innermost code that is the user's, a plugin's or the host's."""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ft_host import errors

HOST = Path(errors.__file__).parent
STANDARD = Path(sysconfig.get_paths()["stdlib"])
# Libraries that are called, and don't say what for.
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "pluggy", "numpy", "tqdm")
# What the host waits for, by the file or folder of the host that waits, relative to it.
WAITS = {
    "rewards": "it waits for a reward",
    "rollouts/tool_executor.py": "it waits for a tool",
    "scheduling": "it waits for completions",
    "data": "it reads rows",
    "training/checkpoint.py": "it writes a checkpoint",
}
# Functions of the host, and files of torch, in which a rank waits for the others.
TOGETHER = (("run.py", "gather"), ("distributed/processes.py", "agreed"))
COLLECTIVE = ("torch/distributed/", "torch/autograd/graph.py")


@dataclass(frozen=True, kw_only=True)
class Place:
    """`text`: file, line and function, and what is waited for if that is known. `together`: whether it may wait for
    another rank there."""

    text: str
    together: bool


def place_of(thread: int) -> Place:
    """Return where the thread with this identifier is. One that is nowhere in Python has no text."""
    frame = sys._current_frames().get(thread)
    return found_in(frame) if frame is not None else Place(text="", together=False)


def found_in(frame: FrameType) -> Place:
    """Return the place that a stack names, from its innermost frame outwards."""
    together, here = False, frame
    while here.f_back is not None and not _tells(here):
        together |= any(part in here.f_code.co_filename for part in COLLECTIVE)
        here = here.f_back
    file = Path(here.f_code.co_filename)
    inside = file.relative_to(HOST).as_posix() if file.is_relative_to(HOST) else ""
    together |= any((inside, here.f_code.co_name) == each for each in TOGETHER)
    what = next((f"; {words}" for part, words in WAITS.items() if inside.startswith(part)), "")
    return Place(text=f"{file}, line {here.f_lineno}, in {here.f_code.co_name}{what}", together=together)


def _tells(frame: FrameType) -> bool:
    """Whether a frame is of code that says what is done: neither of Python's library nor of one that is called."""
    file = Path(frame.f_code.co_filename)
    if frame.f_code.co_filename.startswith("<"):
        return False
    if "site-packages" in file.parts:
        return file.parts[file.parts.index("site-packages") + 1] not in LIBRARIES
    return not file.is_relative_to(STANDARD)
