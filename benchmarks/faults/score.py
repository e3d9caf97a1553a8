"""The tables of the benchmark of faults, as Markdown: by family, what was named, what misled, what cured.

    python benchmarks/faults/score.py runs/faults/found.jsonl
    python benchmarks/faults/score.py runs/faults/found.jsonl --seeds 1 --list
    python benchmarks/faults/score.py runs/faults/found.jsonl --misses

Warnings and errors count, since a healthy run may hold notes. A fault is *named* where one of them has a code that
says the cause, by STEPS steps after the fault was visible, or where its first patch is of a field at fault; *partly*
where one points to the right part, or a further remedy or a note is of a field at fault. A finding *misleads* where its
first patch moves no field at fault, or, without a patch, where it is neither the cause nor a consequence that the case
lists; so does one that was told before the fault was there, and in a healthy run all do. Imports no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cure  # noqa: E402
from case import Case  # noqa: E402
from cases import CASES  # noqa: E402
from families import FAMILIES  # noqa: E402

STEPS = 50  # in which a fault must be found
Runs = dict[tuple[str, str, int], dict[str, Any]]  # by kind, case and seed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("found", type=Path, help="what run.py has written")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all that it has")
    parser.add_argument("--list", action="store_true", help="a row for each case, too")
    parser.add_argument("--misses", action="store_true", help="only what went wrong, with the messages")
    args = parser.parse_args(argv)
    runs = results(args.found, args.seeds)
    print("\n".join(misses(runs) if args.misses else [*table(runs), *(listing(runs) if args.list else [])]))
    return 0


def results(path: Path, seeds: list[int] | None) -> Runs:
    """The runs of these seeds; of one that was made again the last."""
    lines = [json.loads(each) for each in path.read_text(encoding="utf-8").split("\n") if each]
    return {
        (each["kind"], each["case"], each["seed"]): each
        for each in lines
        if each["case"] in CASES and (seeds is None or each["seed"] in seeds)
    }


# ---------------------------------------------------------------- of one run


def told(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in run["findings"] if finding["severity"] != "info"]


def early(case: Case, finding: dict[str, Any]) -> bool:
    """Whether it was told before the fault. A step that can't be made is told of while the step before is the last."""
    return finding["opened"] < case.visible - 1


def in_time(case: Case, finding: dict[str, Any]) -> bool:
    return not early(case, finding) and finding["opened"] - case.visible <= STEPS


def at_fault(case: Case, patches: Iterable[dict[str, Any]]) -> bool:
    return any(set(patch) & set(case.at_fault) for patch in patches)


def named(case: Case, run: dict[str, Any]) -> bool:
    return any(
        in_time(case, each) and (each["code"].startswith(case.cause) or at_fault(case, each["patches"][:1]))
        for each in told(run)
    )


def partly(case: Case, run: dict[str, Any]) -> bool:
    """Whether it points to the right part, without naming the cause."""
    if named(case, run):
        return False
    some = any((case.partly and each["code"].startswith(case.partly)) for each in told(run))
    return some or any(
        each["code"].startswith(case.cause) or at_fault(case, each["patches"])
        for each in run["findings"]
        if not early(case, each)
    )


def learnt(run: dict[str, Any]) -> bool:
    """Whether a run ended better than it began, by its held-out figure; also where it has none."""
    held_out = run["held_out"]
    return not held_out or cure.way_of(held_out) * (held_out["last"] - held_out["first"]) > 0


def misleading(case: Case, run: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in told(run) if misleads(case, each)]


def misleads(case: Case, finding: dict[str, Any]) -> bool:
    if case.healthy or early(case, finding):
        return True
    if finding["code"].startswith((*case.cause, *case.partly)):
        return False
    if finding["patches"]:
        return not at_fault(case, finding["patches"][:1])
    return not finding["code"].startswith(case.beside) if case.beside else True


# ---------------------------------------------------------------- of all


def table(runs: Runs) -> list[str]:
    """A column for each family, and one for all."""
    families = [name for name in FAMILIES if any(CASES[case].family == name for _, case, _ in runs)]
    columns = {name: {key: run for key, run in runs.items() if CASES[key[1]].family == name} for name in families}
    marks = {name: f"{name} ({'tuned on' if FAMILIES[name].TUNED else 'held out'})" for name in families}
    if len(families) > 1:
        columns["all"], marks["all"] = runs, "all"
    counts = {name: count(part) for name, part in columns.items()}
    rows = list(next(iter(counts.values()))) if counts else []
    return [
        f"Seeds {', '.join(map(str, sorted({seed for _, _, seed in runs})))}.",
        "",
        f"| | {' | '.join(marks.values())} |",
        f"| --- |{' --- |' * len(marks)}",
        *[f"| {row} | {' | '.join(counts[name][row] for name in columns)} |" for row in rows],
        "",
    ]


def count(runs: Runs) -> dict[str, str]:
    made = [(CASES[case], run) for (kind, case, _), run in runs.items() if kind == "run"]
    faulty = [pair for pair in made if not pair[0].healthy]
    healthy = [run for case, run in made if case.healthy and learnt(run)]
    others = [run for case, run in made if case.healthy and not learnt(run)]
    all_told = sum(len(told(run)) for _, run in faulty)
    cures = judged(runs, "cure")
    flights = [each for each in judged(runs, "autopilot") if cure.won_back(*each[1:]) is not None]
    return {
        "faulty runs, kinds of faults": f"{len(faulty)}, {len({case.id for case, _ in faulty})}",
        "**named**": share(sum(named(*pair) for pair in faulty), len(faulty)),
        "partly": share(sum(partly(*pair) for pair in faulty), len(faulty)),
        "**misleading**, of warnings and errors": share(sum(len(misleading(*pair)) for pair in faulty), all_told),
        "**healthy runs with a warning**": share(sum(bool(told(run)) for run in healthy), len(healthy)),
        "runs made to be healthy that learnt nothing, with a warning": share(
            sum(bool(told(run)) for run in others), len(others)
        ),
        "**first patches that cure**": share(sum(cure.cured(*each[1:]) for each in cures), len(cures)),
        "first patches that make it worse": share(sum(cure.worse(*each[1:]) for each in cures), len(cures)),
        "**autopilot cures**, of faults that cost something held out": share(
            sum(cure.cured(*each[1:]) for each in flights), len(flights)
        ),
        "autopilot ends worse than it began": share(sum(cure.worse(*each[1:]) for each in flights), len(flights)),
    }


def judged(runs: Runs, kind: str) -> list[tuple[Case, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Case, faulty run, healthy one beside it, and the cure (or the flight) of each."""
    out = []
    for (of, case, seed), made in runs.items():
        run, healthy = runs.get(("run", case, seed)), runs.get(("reference", case, seed))
        if of == kind and run is not None and healthy is not None and healthy["held_out"]:
            out.append((CASES[case], run, healthy, made))
    return out


def share(some: int, of: int) -> str:
    return f"{some} of {of} ({100 * some / of:.1f} %)" if of else "–"


def listing(runs: Runs) -> list[str]:
    faults = [case for case in CASES.values() if not case.healthy and of_case(case, runs)]
    healthy = [case for case in CASES.values() if case.healthy and of_case(case, runs)]
    return [
        "| Fault | Method | Named | By | Misleading | First patch | Won back |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *[row(case, runs) for case in faults],
        "",
        "| Healthy run | Method | What makes it look wrong | Warnings |",
        "| --- | --- | --- | --- |",
        *[
            f"| {case.id} | {case.method} | {case.what} | {listed(of_case(case, runs), told) or 'none'} |"
            for case in healthy
        ],
    ]


def of_case(case: Case, runs: Runs) -> list[dict[str, Any]]:
    return [run for (kind, name, _), run in sorted(runs.items()) if kind == "run" and name == case.id]


def row(case: Case, runs: Runs) -> str:
    made = of_case(case, runs)
    yes, some = sum(named(case, run) for run in made), sum(partly(case, run) for run in made)
    said = f"{yes} of {len(made)}" + (f", {some} partly" if some else "")
    patches = [json.dumps(patch) for run in made if (patch := cure.first_patch(run)) is not None]
    shares = [cure.won_back(*each[1:]) for each in judged(runs, "cure") if each[0] is case]
    won = ", ".join("no price" if each is None else f"{each:.0%}" for each in shares)
    return (
        f"| {case.what} ({case.id}) | {case.method} | {said} | "
        f"{listed(made, told) or 'nothing'} | {listed(made, lambda run: misleading(case, run))} | "
        f"{', '.join(dict.fromkeys(patches))} | {won} |"
    )


def listed(runs: list[dict[str, Any]], of: Any) -> str:
    """Codes over all runs, with how many runs have them where it isn't all."""
    counts: dict[str, int] = {}
    for run in runs:
        for code in {each["code"] for each in of(run)}:
            counts[code] = counts.get(code, 0) + 1
    return ", ".join(code if n == len(runs) else f"{code} ({n} of {len(runs)})" for code, n in sorted(counts.items()))


def misses(runs: Runs) -> list[str]:
    out = []
    for (kind, name, seed), run in sorted(runs.items()):
        case = CASES[name]
        if kind != "run":
            continue
        if not case.healthy and not named(case, run):
            said = ", ".join(f"{each['code']} at {each['opened']}" for each in told(run)) or "nothing"
            noted = ", ".join(each["code"] for each in run["findings"] if each["severity"] == "info")
            out.append(
                f"- {'PARTLY' if partly(case, run) else 'MISSED'} {name} seed {seed}: expected {', '.join(case.cause)} "
                f"from step {case.visible}, or a patch of {', '.join(case.at_fault)}; told {said}; noted "
                f"{noted or 'nothing'}; {run['steps']} of {run['planned']} steps; {run['held_out']}; "
                f"{run['error'] or ''}"
            )
        for each in misleading(case, run):
            kinds = "HEALTHY" if case.healthy else "MISLEADING"
            said = f"{each['code']} at {each['opened']}: {each['message']} {each['patches'][:1]}"
            out.append(f"- {kinds} {name} seed {seed}: {said}")
    for kind in ("cure", "autopilot"):
        for case, run, healthy, made in judged(runs, kind):
            if not cure.cured(run, healthy, made):
                out.append(
                    f"- NO {kind} {case.id} seed {made['seed']}: {made['fields'] or made.get('attempts')}: "
                    f"{run['held_out'].get('last')} -> {made['held_out'].get('last')}, healthy {healthy['held_out']}"
                )
    return out


if __name__ == "__main__":
    sys.exit(main())
