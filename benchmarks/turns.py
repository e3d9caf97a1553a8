"""Processes that take turns on one machine, and tables of what they saw: what every comparison with TRL shares."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from watch import busy

# Of glibc: keep freed blocks of any size, instead of handing them back to the system and getting them page by page
# again.
MALLOC = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"
SETTINGS = {"plain": {}, "best": {"GLIBC_TUNABLES": MALLOC}}  # what TRL's process gets in its environment
QUIET = 0.25  # cores busy with other processes that leave a figure usable
OTHERS = "cores busy with other processes"

Figures = dict[str, float]
Pair = tuple[Figures, Figures]  # ours and theirs, on the same rows, one after the other
Round = TypeVar("Round")


class SideFailed(SystemExit):
    """A side ended with an error, or took too long."""


class OtherWork(SystemExit):
    """Two sides didn't do the same."""


def wait_for_quiet(limit: float) -> None:
    """Until little else has run for a second, or `limit` seconds have passed."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy()
        time.sleep(1)
        if busy() - before < QUIET:
            return


def run_side(
    side: str,
    environment: dict[str, str],
    spec: dict[str, Any],
    cache: Path | None = None,
    limit: float | None = None,
    log: Path | None = None,
) -> dict[str, Any]:
    """What a fresh process saw of the training that `spec` asks for (see sides.py).

    `cache`: a folder in which it finds what such processes kept before it; without one it finds nothing. `limit`:
    seconds after which it is ended, with its children. `log`: gets what it wrote. Raises SideFailed with its last words
    where it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "spec.json"
        kept = str(cache or Path(folder) / "cache")
        full = filled(spec, folder, kept)
        given.write_text(json.dumps(full))
        variables = variables_of(environment, kept)
        command = [sys.executable, str(Path(__file__).parent / "sides.py"), side, str(given)]
        code, said = run_limited(command, variables, limit)
        if log is not None:
            log.write_text(said)
        if code is None:
            raise SideFailed(f"{side} was ended after {limit:.0f} s:\n{said[-3000:]}")
        if code:
            raise SideFailed(f"{side} failed ({code}):\n{said[-3000:]}")
        return json.loads(Path(full["out"]).read_text())


def filled(spec: dict[str, Any], folder: str, kept: str) -> dict[str, Any]:
    """A spec with all that sides.py reads."""
    return {"both": {}, "ours": {}, "trl": {}, **spec, "work": folder, "out": f"{folder}/out.json", "cache": kept}


def variables_of(environment: dict[str, str], kept: str) -> dict[str, str]:
    """The environment of a side's process, which finds in the folder `kept` what such processes kept before it."""
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",
        "HF_DATASETS_CACHE": f"{kept}/datasets",
        "FT_HOST_CACHE": f"{kept}/ft-host",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        **environment,
    }


def run_limited(
    command: list[str], environment: dict[str, str], limit: float | None, cwd: Path | None = None
) -> tuple[int | None, str]:
    """Run a command. Returns how it ended, None after `limit` seconds, and what it wrote. Its children end with it."""
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def check_same_work(ours: dict[str, Any], theirs: dict[str, Any], limit: float = 1e-4) -> float:
    """The largest relative difference between the losses of the same step of two runs. Raises OtherWork where it is
    above `limit`, or where they saw other tokens."""
    if ours["tokens"] != theirs["tokens"]:
        raise OtherWork(f"not the same work: tokens of each step are {ours['tokens']} here, {theirs['tokens']} in TRL")
    largest = max(abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    if not largest <= limit:
        raise OtherWork(
            f"not the same work: losses differ by {largest:.1e} (relative), more than {limit:.0e}: "
            f"{ours['losses']} here, {theirs['losses']} in TRL"
        )
    return largest


def common(seen: dict[str, Any], skip: int) -> Figures:
    """The figures that every comparison has, of the steps after the first `skip`."""
    seconds, cpu, used = (sum(seen[key][skip:]) for key in ("seconds", "cpu", "busy"))
    tokens = sum(seen["tokens"][skip:])
    return {
        "tokens/s": tokens / seconds,
        "tokens/CPU second": tokens / cpu,
        "s/step": statistics.median(seen["seconds"][skip:]),
        "peak over start": seen["peak_mb"] - seen["before_mb"],
        "peak": seen["peak_mb"],
        "first step": seen["first_step_s"],
        "imports": seen["imports_s"],
        OTHERS: max(0.0, used - cpu) / seconds,
    }


def noise(*figures: Figures) -> float:
    return max(each[OTHERS] for each in figures)


def undisturbed(
    make: Callable[[int], Round], noise_of: Callable[[Round], float], count: int, wait: float
) -> tuple[list[Round], int]:
    """`count` rounds, `make(number)` each, and how many were made. Where one waits for a quiet machine, disturbed ones
    are made again, twice `count` in all at most."""
    made: list[Round] = []
    most = 2 * count if wait else count
    while len(made) < most and sum(noise_of(each) <= QUIET for each in made) < count:
        made.append(make(len(made)))
    return sorted(made, key=noise_of)[:count], len(made)  # chosen by what others did, not by what came out


# ---------------------------------------------------------------- tables


def spread(values: list[float]) -> str:
    most = max(values)
    digits = 4 if most < 0.1 else 2 if most < 10 else 1 if most < 100 else 0
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}-{high})"


def ratios(key: str, pairs: list[Pair]) -> list[float]:
    """Ours to theirs, within each pair."""
    return [ours[key] / theirs[key] for ours, theirs in pairs]


def met(goal: float, ratio: float) -> bool:
    """A goal above 1 is one to reach, one below 1 (of memory) one to stay under."""
    return ratio >= goal if goal > 1 else ratio <= goal


def table(units: dict[str, str], goals: dict[str, float], pairs: list[Pair]) -> str:
    """A Markdown table: medians of both sides, and the median of the ratios within pairs, each with its range.

    `units`: the rows, each with its unit or "". `goals`: of some of them, ours to theirs.
    """
    lines = ["| | ft-host | TRL | ft-host / TRL | goal |", "| --- | --- | --- | --- | --- |"]
    for key, unit in units.items():
        ours, theirs = ([pair[side][key] for pair in pairs] for side in (0, 1))
        beside = ratios(key, pairs) if key != OTHERS else []
        verdict = ""
        if key in goals:
            goal = goals[key]
            reached = "met" if met(goal, statistics.median(beside)) else "missed"
            verdict = f"{'at least' if goal > 1 else 'at most'} {goal:.3g}: {reached}"
        label = f"{key}, {unit}" if unit else key
        lines.append(
            f"| {label} | {spread(ours)} | {spread(theirs)} | {spread(beside) if beside else ''} | {verdict} |"
        )
    return "\n".join(lines)


def summary(results: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """All ratios in one Markdown table, each with its range and its goal. A result has its `pairs`, its `goals` and the
    `unit` of its speed; `columns`: what else of it is shown, with the head that it stands under."""
    heads = [*columns.values(), "speed", "goal", "peak over start", "goal"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for each in results:
        cells = [each[name] for name in columns]
        for key in (each["unit"], "peak over start"):
            goal = each["goals"].get(key)
            cells += [spread(ratios(key, each["pairs"])), f"{goal:.3g}" if goal else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
