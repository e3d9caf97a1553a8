"""This tree's ft-host beside that of another commit, on the same work, process by process in turn.

    git worktree add ../before v1.0.0
    python benchmarks/before.py ../before
    python benchmarks/before.py ../before --job sft grpo --repeats 5 --json figures.json

Says whether a change made training slower or larger. Both sides run these scripts; only ft-host and its packages come
from the other tree. Needs Linux, and ft-host and its packages installed in place (`pip install -e`). See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import online
import preferences
import work
from turns import OTHERS, Pair, check_same_work, common, noise, ratios, run_side, spread, undisturbed, wait_for_quiet

SKIP = 2  # steps that aren't measured
SHOWN = ("tokens/s", "tokens/CPU second", "peak over start")
# What each job trains: a method, a model, the measured steps, and what ft-host is told.
JOBS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "sft": ("sft", "small", 6, {}),
    "sft-bigvocab": ("sft", "bigvocab", 3, {}),
    "dpo": ("dpo", "small", 3, preferences.COMPARISONS["dpo-live"].ours),
    "kto": ("kto", "small", 3, preferences.COMPARISONS["kto"].ours),
    "reward": ("reward", "small", 3, {}),
    "grpo": ("grpo", "small", 2, {}),
    "rloo": ("rloo", "small", 2, {"beta": 0.05}),
}
ROWS: dict[str, Callable[[], list[work.Row]]] = {
    "sft": lambda: work.made_rows(2000),
    "dpo": lambda: work.made_pairs(600, "long"),
    "reward": lambda: work.made_pairs(600, "long"),
    "kto": lambda: work.judged(work.made_pairs(600, "short")),
    "grpo": lambda: work.made_prompts(400, online.WORKLOADS["group"].words),
    "rloo": lambda: work.made_prompts(400, online.WORKLOADS["group"].words),
}


def packages_of(tree: Path) -> list[Path]:
    return [tree, *sorted(each.parent for each in tree.glob("plugins/*/pyproject.toml"))]


def write_metadata(tree: Path) -> None:
    """Write the metadata of a tree's packages beside their code, so that versions and entry points are its own."""
    for package in packages_of(tree):
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info"]
        subprocess.run(command, cwd=package, check=True)


def beside(tree: Path) -> dict[str, str]:
    """The environment of a process that takes ft-host and its packages from `tree`."""
    return {"PYTHONPATH": os.pathsep.join(map(str, packages_of(tree)))}


def spec_of(job: str, rows: Path, models: Path) -> dict[str, Any]:
    method, model, steps, ours = JOBS[job]
    load = online.WORKLOADS["group"]
    if method in ("grpo", "rloo"):
        spec = online.spec_of("ours", method, load, online.BATCH, rows, models / model, SKIP + steps)
        return spec | {"ours": spec["ours"] | ours}
    name = f"{model}-classifier" if method == "reward" else model
    spec = {"method": method, "model": str(models / name), "rows": str(rows), "steps": SKIP + steps, "ours": ours}
    return spec if method == "sft" else spec | {"both": preferences.BOTH}


def compare(job: str, before: Path, at: Path, args: argparse.Namespace) -> dict[str, Any]:
    method = JOBS[job][0]
    rows, apart = ROWS[method](), []

    def pair_number(number: int) -> Pair:
        file = at / f"{job}-{number}.jsonl"
        work.write_rows(file, work.in_order(rows, None, number))
        seen = {}
        here = Path(__file__).resolve().parent.parent
        for tree in (here, before) if number % 2 else (before, here):  # neither is always the first
            wait_for_quiet(args.wait)
            seen[tree] = run_side("ours", beside(tree), spec_of(job, file, at))
        if method in ("grpo", "rloo"):  # the seed is the same, yet rounding may lead to another token
            apart.append(online.check_same_size(seen[here], seen[before]))
        else:
            apart.append(check_same_work(seen[here], seen[before]))
        mine, theirs = (common(seen[tree], SKIP) for tree in (here, before))
        told = ", ".join(f"{key} {mine[key]:.0f} and {theirs[key]:.0f}" for key in SHOWN)
        print(f"{job}, pair {number + 1}: {told}; others: {noise(mine, theirs):.1f} cores", file=sys.stderr, flush=True)
        return mine, theirs

    pairs, _ = undisturbed(pair_number, lambda pair: noise(*pair), args.repeats, args.wait)
    what = "completion tokens" if method in ("grpo", "rloo") else "losses"
    cells = [
        f"{spread([mine[key] for mine, _ in pairs])} | {spread([theirs[key] for _, theirs in pairs])} | "
        f"**{spread(ratios(key, pairs))}**"
        for key in SHOWN
    ]
    print(f"| {job} | {' | '.join(cells)} |", flush=True)
    print(f"{job}: {what} differ by at most {max(apart):.1e} (relative)", file=sys.stderr, flush=True)
    return {
        "job": job,
        "pairs": pairs,
        "ratios": {key: statistics.median(ratios(key, pairs)) for key in SHOWN},
        "others": max(noise(*pair) for pair in pairs),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the other commit")
    parser.add_argument("--job", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=3, help="pairs of processes (default: %(default)s)")
    parser.add_argument(
        "--wait", type=float, default=0, metavar="SECONDS", help="wait so long at most for a quiet machine before each"
    )
    parser.add_argument("--json", type=Path, help="write what came out to this file")
    args = parser.parse_args(argv)
    before = args.before.resolve()
    if not (before / "ft_host" / "__init__.py").is_file() or not (before / "plugins").is_dir():
        parser.error(f"{args.before}: no checkout of ft-host (it has no ft_host and plugins)")
    write_metadata(before)

    heads = [f"{key}, this | before | ratio" for key in SHOWN]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        tokenizer = work.make_tokenizer(work.made_rows(4000))
        for model in sorted({JOBS[job][1] for job in args.job}):
            work.make_model(at / model, model, tokenizer)
        if "reward" in args.job:
            work.make_model(at / "small-classifier", "small", tokenizer, classifier=True)
        print(f"| | {' | '.join(heads)} |\n{'| --- ' * (1 + 3 * len(SHOWN))}|", flush=True)
        for job in args.job:
            results.append(compare(job, before, at, args))
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nOther processes used {max(each['others'] for each in results):.2f} cores at most ({OTHERS}).")


if __name__ == "__main__":
    main()
