"""The trackers of a run, through accelerate: which, whether they can be had, and their beginning and end.

A tracker may reach out of the machine, so that it may fail at any time. It ends no run: metrics.jsonl has all numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from ft_host.config.options import TRACKERS
from ft_host.errors import ConfigError
from ft_host.util.console import tell

if TYPE_CHECKING:
    from accelerate import Accelerator


def chosen(names: list[str]) -> list[str]:
    """Return the trackers that `report_to` names, each once; `all` stands for those that are installed."""
    installed = [name for name in TRACKERS if is_installed(name)] if "all" in names else []
    return list(dict.fromkeys([*(name for name in names if name != "all"), *installed]))


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def check_trackers(names: list[str]) -> None:
    """Refuse a tracker whose package isn't installed, or which accelerate can't use. Raises ConfigError."""
    for name in names:
        if name != "all" and not is_installed(name):
            raise ConfigError(f"report_to: {name} is not installed (pip install {TRACKERS[name]})")
    asked = chosen(names)
    if not asked:
        return
    from accelerate.tracking import get_available_trackers

    usable = [str(each) for each in get_available_trackers()]
    for name in asked:
        if name not in usable:
            raise ConfigError(
                f"report_to: accelerate can't use the {name} that is installed; upgrade it "
                f"(pip install -U {TRACKERS[name]}), or name other trackers: {', '.join(TRACKERS)}"
            )


def begin_trackers(accelerator: Accelerator, name: str, report: Callable[[str, str], None]) -> None:
    """Start the trackers under this name. One that fails is reported, `report(text, level)`, and left out; the others
    are used."""
    begun = []
    for tracker in list(accelerator.log_with):
        accelerator.log_with, accelerator.trackers = [tracker], []
        try:
            accelerator.init_trackers(name)
        except Exception as error:  # whatever it raises: no login, no network
            text = (
                f"report_to: {tracker} can't be started ({type(error).__name__}: {error}); the run goes on without it"
            )
            report(text, "warning")
        else:
            begun += accelerator.trackers
    accelerator.trackers = begun


def end_trackers(accelerator: Accelerator, progress: str) -> None:
    """Let the trackers send what they still hold. One that fails is reported, in the format that `progress` sets."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:  # as above; the run has done its work
            text = f"report_to: {tracker.name} failed at the end ({type(error).__name__}: {error})"
            tell(text, "warning", progress)
    accelerator.trackers = []
