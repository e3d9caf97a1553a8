"""The table of waits, and what a run does beyond it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from device.waits import Place

TABLE = Path(__file__).with_name("waits.toml")
IN_BF16 = " in bf16"
WATCHED = ("forward", "backward", "step", "rows", "generation", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Allowed:
    unit: str
    line: str
    times: int
    cases: tuple[str, ...]  # none: all


def table() -> list[Allowed]:
    """Raises KeyError for an entry without one of its fields: each says why."""
    return [
        Allowed(unit=each["in"], line=each["line"], times=each["times"], cases=tuple(each.get("cases", ())))
        for each in tomllib.loads(TABLE.read_text(encoding="utf-8"))["wait"]
        if each["why"]
    ]


def compared(case: str, waits: dict[str, dict[Place, int]]) -> tuple[list[str], list[str]]:
    """Waits of a case that are more often than the table allows, and lines of the table that wait less often. A case in
    bf16 may wait for what it waits for in float32, and no more."""
    names = {case, case.removesuffix(IN_BF16)}
    mine = {(each.unit, each.line): each.times for each in table() if not each.cases or names & set(each.cases)}
    found = {
        (unit, f"{place.file} {place.function}: {place.line}"): (times, place.number)
        for unit in WATCHED
        for place, times in waits.get(unit, {}).items()
    }
    more = [
        f"{unit}: {times} times, {mine.get((unit, line), 0)} allowed, at line {number} of {line}"
        for (unit, line), (times, number) in found.items()
        if times > mine.get((unit, line), 0)
    ]
    fewer = [
        f"{unit}: {found.get((unit, line), (0, 0))[0]} times, {times} allowed, {line}"
        for (unit, line), times in mine.items()
        if found.get((unit, line), (0, 0))[0] < times
    ]
    return more, fewer
