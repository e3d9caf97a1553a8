"""Cures: each first patch applied, each faulty run file given to the autopilot, and both judged by a held-out figure.

A cure is judged beside two other runs of the same seed: the faulty one, and the same run without its fault. It counts
if it wins back at least half of what the fault cost. Where the fault costs nothing that is held out (its cost is time,
say), it counts if the finding is not told again and the figure is no worse. Imports no torch.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from cases import CASES
from families.base import SCORED
from one import seed_folder, values_of

if TYPE_CHECKING:
    from pathlib import Path

    from case import Case
    from run import Job

NOT_BY_CONFIG = {"code", "machine"}  # faults that no field of the config undoes
GIVEN = {"data", "eval_dataset", "model", "reward", "teacher_model_name_or_path"}  # what nobody but the user can give
SMALL = 0.1  # of what the healthy run learns
HALF = 0.5
BUDGET = 4  # attempts of an autopilot


def jobs(done: list[dict[str, Any]], names: list[str], seeds: list[int], cures: bool, autopilot: bool) -> list[Job]:
    """What is to be made of the faulty runs: healthy ones beside them, and cures."""
    runs = {(each["case"], each["seed"]): each for each in done if each["kind"] == "run"}
    wanted: list[Job] = []
    for name in names:
        case = CASES[name]
        if case.healthy or NOT_BY_CONFIG & set(case.at_fault):
            continue
        for seed in seeds:
            run = runs.get((name, seed))
            patch = first_patch(run) if run is not None else None
            if patch is not None or autopilot:
                wanted.append(("reference", name, seed, {}))
            if patch is not None and cures:
                wanted.append(("cure", name, seed, patch))
            if autopilot and for_autopilot(case):
                wanted.append(("autopilot", name, seed, {}))
    return wanted


def for_autopilot(case: Case) -> bool:
    """Whether other values of fields can mend it: not other rows or rewards, nor a model or a teacher that is right."""
    at_fault = set(case.at_fault)
    return case.patch is None and not at_fault & {"data", "reward"} and not at_fault <= GIVEN


def headline(run: dict[str, Any]) -> dict[str, Any] | None:
    """The finding that a user would act on: of those open at the end, or else of all that were told, the most severe,
    and of several the earliest."""
    told = [each for each in run["findings"] if each["severity"] != "info"]
    still = [each for each in told if each["state"] == "open"] or told
    return min(still, key=lambda each: (each["severity"] != "error", each["opened"]), default=None)


def first_patch(run: dict[str, Any]) -> dict[str, Any] | None:
    finding = headline(run)
    return finding["patches"][0] if finding is not None and finding["patches"] else None


# ---------------------------------------------------------------- autopilot


def fly(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Give a faulty run file to `ft-host autopilot`."""
    case = CASES[name]
    folder = seed_folder(work, case.family, seed)
    output = folder / "runs" / (name.replace("/", "-") + ".autopilot")
    shutil.rmtree(output, ignore_errors=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_suffix(".run.json")
    path.write_text(json.dumps(values_of(case, folder, seed) | {"seed": seed}), encoding="utf-8")
    started = time.perf_counter()
    made = subprocess.run(
        [sys.executable, "-m", "ft_host", "autopilot", case.method, str(path), "--budget", str(BUDGET)]
        + ["--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    flight = output / "autopilot.json"
    lineage = json.loads(flight.read_text(encoding="utf-8")) if flight.is_file() else {"attempts": [], "best": None}
    best = next((each for each in lineage["attempts"] if each["number"] == lineage["best"]), None)
    metric, way = case.held_out_metric
    last = best["metrics"].get(metric) if best is not None else None
    for part in output.glob("attempt-*/checkpoints"):
        shutil.rmtree(part)
    return {
        "kind": "autopilot",
        "case": name,
        "seed": seed,
        "fields": {},
        "findings": [],
        "steps": sum(each["steps"] for each in lineage["attempts"]),
        "planned": 0,
        "seconds": round(time.perf_counter() - started, 2),
        "error": None if made.returncode == 0 else made.stderr[-500:],
        "held_out": {} if last is None else {"metric": metric, "way": way, "first": None, "last": last},
        "attempts": [each["change"] and each["change"]["patch"] for each in lineage["attempts"]],
        "best": lineage["best"],
    }


# ---------------------------------------------------------------- judging


def won_back(run: dict[str, Any], reference: dict[str, Any], cure: dict[str, Any]) -> float | None:
    """The share of what a fault cost that a cure wins back: 0 none of it, 1 all, below 0 it made things worse. None:
    the fault costs nothing held out. A loss may be as much worse than at the start as it likes: only what would have
    been learnt counts."""
    healthy = reference["held_out"]
    way = way_of(healthy)
    unlearnt = healthy["first"]
    bad, good = (last_of(each, unlearnt) for each in (run, cure))
    bad = min(bad, unlearnt) if healthy["way"] == "lower" else bad
    cost = way * (healthy["last"] - bad)
    if cost <= margin_of(healthy):
        return None
    return way * (good - bad) / cost


def way_of(held_out: dict[str, Any]) -> int:
    return 1 if held_out["way"] == "higher" else -1


def last_of(run: dict[str, Any], otherwise: float) -> float:
    """A run's held-out figure at its end; what wasn't trained has that of the start."""
    value = run["held_out"].get("last")
    return otherwise if value is None or not math.isfinite(value) else value


def margin_of(healthy: dict[str, Any]) -> float:
    """By how much a held-out figure must differ to count: a tenth of what is learnt in health, and of rewards, which
    are the mean of a few completions, more than one of them."""
    learnt = max(abs(healthy["last"] - healthy["first"]), 1e-3)
    return max(SMALL * learnt, 1.5 / SCORED if healthy["metric"] == "eval_reward" else 0.0)


def cured(run: dict[str, Any], reference: dict[str, Any], cure: dict[str, Any]) -> bool:
    share = won_back(run, reference, cure)
    if share is not None:
        return share >= HALF
    told = headline(run)
    again = told is None or told["code"] in {each["code"] for each in cure["findings"]}
    return not again and not worse(run, reference, cure)


def worse(run: dict[str, Any], reference: dict[str, Any], cure: dict[str, Any]) -> bool:
    """Whether what came out is worse than the faulty run itself, by more than a tenth of what is learnt in health.
    A fault may make the figure look better than in health (another reference, from which all pairs are apart): then
    what is learnt in health is enough."""
    healthy = reference["held_out"]
    way = way_of(healthy)
    enough = min(way * last_of(run, healthy["first"]), way * healthy["last"])
    return enough - way * last_of(cure, healthy["first"]) > margin_of(healthy)
