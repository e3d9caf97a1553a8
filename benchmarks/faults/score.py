"""The table of the benchmark of faults, as Markdown: what was found in each run, and after how many steps.

    python benchmarks/faults/score.py runs/faults/found.jsonl --seeds 3 4 5
    python benchmarks/faults/score.py runs/faults/found.jsonl --seeds 0 --misses

A finding counts from "warning" on: a healthy run may hold notes. A fault is found where a finding has one of the codes
that were expected, by STEPS steps after the fault was visible. Any other finding is false, unless it is listed as a
consequence of the fault; so is one that was told before the fault was there, and in a healthy run all are. Imports no
torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from case import Case  # noqa: E402
from cases import CASES, FAULTS, HEALTHY  # noqa: E402

STEPS = 50  # in which a fault must be found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="what run.py has written")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all that it has")
    parser.add_argument("--misses", action="store_true", help="only what wasn't found, and what was found wrongly")
    args = parser.parse_args(argv)
    runs = results(args.found, args.seeds)
    print("\n".join(misses(runs) if args.misses else report(runs)))
    return 0


def results(path: Path, seeds: list[int] | None) -> list[dict[str, Any]]:
    """The runs of these seeds; of one that was made again the last."""
    lines = [json.loads(each) for each in path.read_text(encoding="utf-8").split("\n") if each]
    runs = {(each["case"], each["seed"]): each for each in lines if each["case"] in CASES}
    return [run for (_, seed), run in runs.items() if seeds is None or seed in seeds]


# ---------------------------------------------------------------- of one run


def told(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in run["findings"] if finding["severity"] != "info"]


def right(case: Case, run: dict[str, Any]) -> dict[str, Any] | None:
    """The first finding with an expected code, told when the fault was there."""
    fits = [each for each in told(run) if each["code"].startswith(case.expected) and not early(case, each)]
    return min(fits, key=lambda finding: finding["opened"], default=None)


def early(case: Case, finding: dict[str, Any]) -> bool:
    """Whether it was told before the fault. A step that can't be made is told of while the step before is the last."""
    return finding["opened"] < case.visible - 1


def lateness(case: Case, finding: dict[str, Any]) -> int:
    """Steps from the first that the fault is in to the one after which it was told."""
    return max(0, finding["opened"] - case.visible)


def in_time(case: Case, run: dict[str, Any]) -> bool:
    finding = right(case, run)
    return finding is not None and lateness(case, finding) <= STEPS


def false(case: Case, run: dict[str, Any]) -> list[dict[str, Any]]:
    fine = (*case.expected, *case.beside)
    return [each for each in told(run) if early(case, each) or not (fine and each["code"].startswith(fine))]


# ---------------------------------------------------------------- of all


def of_case(case: Case, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((run for run in runs if run["case"] == case.name), key=lambda run: run["seed"])


def report(runs: list[dict[str, Any]]) -> list[str]:
    faulty = [(CASES[run["case"]], run) for run in runs if not CASES[run["case"]].healthy]
    healthy = [(CASES[run["case"]], run) for run in runs if CASES[run["case"]].healthy]
    found = [pair for pair in faulty if in_time(*pair)]
    late = [lateness(case, right(case, run)) for case, run in found]
    true = sum(len(told(run)) - len(false(case, run)) for case, run in [*faulty, *healthy])
    wrong = sum(len(false(case, run)) for case, run in [*faulty, *healthy])
    quiet = sum(not told(run) for _, run in healthy)
    seeds = sorted({run["seed"] for run in runs})
    return [
        (
            f"Seeds {', '.join(map(str, seeds))}: {len(faulty)} faulty runs of {len({c.name for c, _ in faulty})}"
            f" kinds, {len(healthy)} healthy ones of {len({c.name for c, _ in healthy})}."
        ),
        "",
        (
            f"- **Recall**: {share(len(found), len(faulty))} were found with the right code within {STEPS} steps of"
            f" being visible, at the median {statistics.median(late) if late else 0:g} steps after it."
        ),
        (
            f"- **Precision**: {share(true, true + wrong)} of all warnings and errors name the fault or a consequence"
            " of it."
        ),
        f"- **Healthy runs without a warning**: {share(quiet, len(healthy))}.",
        "",
        "| Fault | Method | Expected | Found | Steps until found | Other findings |",
        "| --- | --- | --- | --- | --- | --- |",
        *[row(case, of_case(case, runs)) for case in FAULTS if of_case(case, runs)],
        "",
        "| Healthy run | Method | What makes it look wrong | Warnings |",
        "| --- | --- | --- | --- |",
        *[
            f"| {case.name} | {case.method} | {case.what} | {listed(of_case(case, runs), told) or 'none'} |"
            for case in HEALTHY
            if of_case(case, runs)
        ],
    ]


def share(some: int, of: int) -> str:
    return f"{some} of {of} ({100 * some / max(of, 1):.1f} %)"


def row(case: Case, runs: list[dict[str, Any]]) -> str:
    firsts = [right(case, run) for run in runs]
    steps = ", ".join("not found" if each is None else str(lateness(case, each)) for each in firsts)
    codes = ", ".join(dict.fromkeys(each["code"] for each in firsts if each is not None))

    def others(run: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for each in told(run) if not each["code"].startswith(case.expected)]

    return (
        f"| {case.what} ({case.name}) | {case.method} | {', '.join(case.expected)} | {codes or 'none'} | {steps} | "
        f"{listed(runs, others)} |"
    )


def listed(runs: list[dict[str, Any]], of: Any) -> str:
    """Codes over all runs, with how many runs have them where it isn't all."""
    counts: dict[str, int] = {}
    for run in runs:
        for code in {each["code"] for each in of(run)}:
            counts[code] = counts.get(code, 0) + 1
    return ", ".join(code if n == len(runs) else f"{code} ({n} of {len(runs)})" for code, n in sorted(counts.items()))


def misses(runs: list[dict[str, Any]]) -> list[str]:
    out = []
    for case in CASES.values():
        for run in of_case(case, runs):
            wrong = false(case, run)
            if not case.healthy and not in_time(case, run):
                late = right(case, run)
                said = ", ".join(f"{each['code']} at {each['opened']}" for each in told(run)) or "nothing"
                noted = ", ".join(each["code"] for each in run["findings"] if each["severity"] == "info")
                out.append(
                    f"- {'LATE' if late else 'MISSED'} {case.name} seed {run['seed']}: expected "
                    f"{', '.join(case.expected)} from step {case.visible}, told {said}; noted {noted or 'nothing'}; "
                    f"{run['steps']} of {run['planned']} steps; {run['held_out']}; {run['error'] or ''}"
                )
            for each in wrong:
                kind = "FALSE (healthy)" if case.healthy else "FALSE"
                out.append(
                    f"- {kind} {case.name} seed {run['seed']}: {each['code']} at {each['opened']}: {each['message']}"
                )
    return out


if __name__ == "__main__":
    sys.exit(main())
