"""Runs the cases of the benchmark of faults and writes what was found in each: a line of OUT a run.

    python benchmarks/faults/run.py --work runs/faults --seeds 0 --families arithmetic transduction
    python benchmarks/faults/run.py --work runs/faults --seeds 0 --cures --autopilot
    python benchmarks/faults/run.py --work runs/faults --seeds 0 --cases lookup/dpo transduction/sft-warm

Runs that OUT has already are not made again, so that it can be stopped at any time. `--cases` takes names and
beginnings of names. `--cures` applies the first patch that each faulty run was advised, makes that run too, and a
healthy one beside which both are judged (`cure.py`). `--autopilot` gives each faulty run file to `ft-host autopilot`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import cure  # noqa: E402
import one  # noqa: E402
from case import Case  # noqa: E402
from cases import CASES  # noqa: E402
from families import FAMILIES  # noqa: E402
from material import read_rows  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and runs")
    parser.add_argument("--out", type=Path, help="file that gets a line for each run (default: WORK/found.jsonl)")
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), help="default: all that can be made here")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="NAME", help="default: all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each Nth kind of fault and of health")
    parser.add_argument("--offset", type=int, default=0, metavar="K", help="with --every: begin with the Kth, from 0")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="make runs again that OUT has; the last line counts")
    parser.add_argument("--keep", action="store_true", help="keep models and checkpoints of the runs")
    parser.add_argument("--cures", action="store_true", help="also apply the first patch that was advised")
    parser.add_argument("--autopilot", action="store_true", help="also give faulty run files to ft-host autopilot")
    args = parser.parse_args(argv)

    families = chosen(args.families)
    names = [
        name
        for name, case in CASES.items()
        if case.family in families
        and any(name.startswith(each) for each in args.cases)
        and number_of_kind(case) % args.every == args.offset % args.every
    ]
    if not names:
        parser.error(f"no case of {', '.join(families)} is called or begins with {', '.join(args.cases)}")
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    out = args.out or args.work / "found.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        each = [(FAMILIES[name].__name__, seed) for name in families for seed in args.seeds]
        for made in [pool.submit(make, module, args.work, seed) for module, seed in each]:
            made.result()
        jobs = [("run", name, seed, {}) for seed in args.seeds for name in names]
        do(pool, jobs, args, out)
        if args.cures or args.autopilot:
            do(pool, cure.jobs(results(out), names, args.seeds, args.cures, args.autopilot), args, out)
    return 0


def chosen(wanted: list[str] | None) -> list[str]:
    """The families to run: all that were asked for, or all that can be made here. Says which can't, and why."""
    missing = {name: family.missing() for name, family in FAMILIES.items()}
    for name, reason in missing.items():
        if reason and (wanted is None or name in wanted):
            print(f"{name} is left out: {reason}", file=sys.stderr)
    return [name for name in FAMILIES if not missing[name] and (wanted is None or name in wanted)]


def number_of_kind(case: Case) -> int:
    """Its place among the faults, or among the healthy runs, of all families."""
    kinds = dict.fromkeys(each.name for each in CASES.values() if each.healthy == case.healthy)
    return list(kinds).index(case.name)


def make(module: str, work: Path, seed: int) -> None:
    import importlib

    import torch

    torch.set_num_threads(1)
    family = importlib.import_module(module)
    folder = one.seed_folder(work, module.rpartition(".")[2], seed)
    if not (folder / "made").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        family.make(folder, seed)
        (folder / "made").touch()


Job = tuple[str, str, int, dict[str, Any]]  # kind, case, seed, fields on top of the case's


def do(pool: ProcessPoolExecutor, wanted: list[Job], args: argparse.Namespace, path: Path) -> None:
    """Make the runs that the file lacks, and add their lines to it."""
    done = set() if args.again else {key(each) for each in results(path)}
    waiting = [job for job in wanted if job[:3] not in done]
    made = [pool.submit(run_job, job, args.work, args.keep) for job in waiting]
    with path.open("a", encoding="utf-8") as out:
        for count, each in enumerate(as_completed(made), 1):
            result = each.result()
            out.write(json.dumps(result) + "\n")
            out.flush()
            print(f"{count}/{len(made)} {line(result)}", flush=True)


def key(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["kind"], result["case"], result["seed"]


def results(path: Path) -> list[dict[str, Any]]:
    """The runs that a file has; of one that was made again the last."""
    return list({key(each): each for each in read_rows(path)}.values()) if path.is_file() else []


def line(result: dict[str, Any]) -> str:
    found = [f"{each['code']}@{each['opened']}" for each in result["findings"] if each["severity"] != "info"]
    noted = [each["code"] for each in result["findings"] if each["severity"] == "info"]
    said = f"{result['kind']} {result['case']} seed {result['seed']}: {result['steps']} steps, "
    said += f"{result['seconds']:.1f} s, {', '.join(found) or 'nothing'}"
    return said + (f"; noted {', '.join(noted)}" if noted else "")


def run_job(job: Job, work: Path, keep: bool) -> dict[str, Any]:
    kind, name, seed, fields = job
    if kind == "autopilot":
        return cure.fly(name, work, seed)
    return one.run_case(name, work, seed, keep, kind, fields)


if __name__ == "__main__":
    sys.exit(main())
