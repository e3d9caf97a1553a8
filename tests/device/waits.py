"""What the host waits for: each copy between host and device, and each look at data, with the line that asked."""

from __future__ import annotations

import collections
import contextlib
import linecache
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
ASYNC = "async"  # a copy from or to pinned memory, which nobody waits for
OURS = re.compile(r"(?:^|/)((?:ft_host|ft_[a-z]+|tests/device)/[^<>]*\.py)$")
ELSEWHERE = re.compile(r"/(?:site|dist)-packages/(.*)$")
SKIPPED = ("torch/", "tests/device/")  # who wants to know which line of torch it was


@dataclass(frozen=True, order=True)
class Place:
    """A line of this project, or the innermost one of another where none of this project is on the stack."""

    file: str
    function: str
    line: str  # its text: numbers move with every change above them
    number: int = field(compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.number} {self.function}: {self.line}"


BACKWARD = Place("torch", "autograd", "", 0)  # a thread of autograd's, without lines of Python


@dataclass(frozen=True)
class Event:
    kind: str
    operator: str
    size: int  # bytes
    place: Place
    unit: tuple[str, int]  # what was under way, and how many there had been of it
    via: str  # the innermost line outside torch, where that is another: "transformers/masking_utils.py:307"


class Log:
    """`events`: all copies and waits. `launches`: operators of the device by name, about the kernels of a GPU."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.launches: dict[str, int] = {}

    @property
    def waits(self) -> list[Event]:
        return [event for event in self.events if event.kind != ASYNC]

    def most_by_place(self) -> dict[str, dict[Place, int]]:
        """The most often that the host waited within one of each unit, by the line that asked for it."""
        found: dict[str, dict[Place, int]] = {}
        for (unit, place), count in collections.Counter((event.unit, event.place) for event in self.waits).items():
            of_unit = found.setdefault(unit[0], {})
            of_unit[place] = max(count, of_unit.get(place, 0))
        return found

    def table(self) -> str:
        """For people: how often, what, where; the most frequent first."""
        counts = collections.Counter((event.kind, event.operator, event.place, event.via) for event in self.events)
        return "\n".join(
            f"{count:6d}  {kind:5s}  {operator.removeprefix('aten::'):34s} {place}{f'  via {via}' if via else ''}"
            for (kind, operator, place, via), count in counts.most_common()
        )


def _short(path: str) -> str | None:
    """A file as the table names it; None for those that are never named: Python's own, torch's and these."""
    found = ELSEWHERE.search(path) or OURS.search(path)
    short = found[1] if found else path
    own = path.startswith("<") or (not found and "/lib/python" in path)
    return None if own or short.startswith(SKIPPED) else short


def _place(frame: FrameType | None) -> tuple[Place, str]:
    """The innermost line of this project on the stack, and the innermost one of any other, if that is further in."""
    inner: Place | None = None
    while frame is not None:
        path, function, number = frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno
        short = _short(path)
        if short is not None:
            place = Place(short, function, linecache.getline(path, number).strip(), number)
            if OURS.search(path) and not ELSEWHERE.search(path):
                return place, f"{inner.file}:{inner.number}" if inner is not None else ""
            inner = inner or place
        frame = frame.f_back
    return inner or BACKWARD, ""


class Listener:
    """What the device reports to. One log is written at a time; a log within another adds to both."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.logs: list[Log] = []
        self.units = [("", 0)]
        self.entered: collections.Counter[str] = collections.Counter()
        module.listen(self)

    def __call__(self, kind: str, operator: str, size: int) -> None:
        if self.logs:
            place, via = _place(sys._getframe())
            event = Event(kind, operator, size, place, self.units[-1], via)
            for log in self.logs:
                log.events.append(event)

    @contextlib.contextmanager
    def log(self) -> Iterator[Log]:
        log = Log()
        self.logs.append(log)
        before = collections.Counter(self.module.launches())
        self.module.count(True)
        try:
            yield log
        finally:
            log.launches = dict(collections.Counter(self.module.launches()) - before)
            self.logs.remove(log)
            self.module.count(bool(self.logs))

    def within(self, unit: str, function: Callable[..., T]) -> Callable[..., T]:
        """The function, each call of which is a unit of that name, for the events in it that no unit within it has."""

        def call(*args: Any, **keywords: Any) -> T:
            self.entered[unit] += 1
            self.units.append((unit, self.entered[unit]))
            try:
                return function(*args, **keywords)
            finally:
                self.units.pop()

        return call
