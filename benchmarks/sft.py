"""ft-host and TRL on the same SFT work, process by process in turn, and the medians of their ratios.

    python benchmarks/sft.py                          both models against both of TRL's settings, five pairs each
    python benchmarks/sft.py --model small --against plain --data train.jsonl
    python benchmarks/sft.py --first-step --rows 100000 [--with-trl]

Needs Linux, and TRL beside ft-host and ft-sft. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import work
from turns import (
    OTHERS,
    SETTINGS,
    Figures,
    Pair,
    check_same_work,
    common,
    noise,
    run_side,
    spread,
    table,
    undisturbed,
    wait_for_quiet,
)

STEPS = {"small": (2, 6), "bigvocab": (1, 3)}  # not measured, measured
GOALS = {  # ours to theirs; more is better, but for memory, where less is
    ("small", "plain"): {"tokens/s": 2.8, "peak over start": 0.26},
    ("small", "best"): {"tokens/s": 1.4, "peak over start": 0.30},
    ("bigvocab", "plain"): {"tokens/s": 2.2, "peak over start": 1 / 3},
    ("bigvocab", "best"): {"tokens/s": 1.3, "peak over start": 1 / 3},
}
UNITS = {
    "tokens/s": "",
    "supervised tokens/s": "",
    "tokens/CPU second": "",
    "s/step": "s",
    "peak over start": "MiB",
    "peak": "MiB",
    "first step": "s",
    "imports": "s",
    OTHERS: "",
}


def numbers(seen: dict[str, Any], supervised: list[int], skip: int) -> Figures:
    """The figures of one run. Both sides train on the same tokens, so the count of supervised ones is that of ours."""
    return common(seen, skip) | {"supervised tokens/s": sum(supervised[skip:]) / sum(seen["seconds"][skip:])}


def compare(name: str, setting: str, rows: list[work.Row], tokenizer: Any, args: argparse.Namespace, at: Path) -> None:
    skip, measured = STEPS[name]
    measured = args.steps or measured
    lengths = (
        [min(length, work.MAX_LENGTH) for length in work.lengths_of(rows, tokenizer)] if setting == "best" else None
    )
    differences = []

    def pair_number(number: int) -> Pair:
        wait_for_quiet(args.wait)
        file = at / f"rows-{number}.jsonl"
        work.write_rows(file, work.in_order(rows, lengths, number)[: args.rows])
        spec = {"method": "sft", "model": str(at / name), "rows": str(file), "steps": skip + measured}
        ours = run_side("ours", {}, spec)
        wait_for_quiet(args.wait)
        theirs = run_side("trl", SETTINGS[setting], spec)
        differences.append(check_same_work(ours, theirs))
        pair = tuple(numbers(seen, ours["supervised"], skip) for seen in (ours, theirs))
        if args.out:
            seen = {"model": name, "setting": setting, "pair": number, "ours": ours, "trl": theirs}
            with args.out.open("a", encoding="utf-8") as log:
                log.write(json.dumps(seen) + "\n")
        print(
            f"{name}, {setting}, pair {number + 1}: {pair[0]['tokens/s']:.0f} and {pair[1]['tokens/s']:.0f} tokens/s "
            f"(a CPU second: {pair[0]['tokens/CPU second']:.0f} and {pair[1]['tokens/CPU second']:.0f}), "
            f"{pair[0]['peak over start']:.0f} and {pair[1]['peak over start']:.0f} MiB; "
            f"others: {pair[0][OTHERS]:.1f} and {pair[1][OTHERS]:.1f} cores",
            file=sys.stderr,
            flush=True,
        )
        return pair

    kept, made = undisturbed(pair_number, lambda pair: noise(*pair), args.runs, args.wait)
    print(f"\n## {name} against TRL {setting}: {len(kept)} of {made} pairs, {measured} steps measured after {skip}\n")
    print(table(UNITS, GOALS[name, setting], kept))
    print(f"\nLosses of the same step differ by at most {max(differences):.1e} (relative).", flush=True)


def first_step(rows: list[work.Row], args: argparse.Namespace, at: Path) -> None:
    """Time from the call of the trainer to the end of the first step, on `args.rows` rows (these, over and over)."""
    file = at / "many.jsonl"
    many = (rows * (args.rows // len(rows) + 1))[: args.rows]
    work.write_rows(file, many)
    spec = {"method": "sft", "model": str(at / "small"), "rows": str(file), "steps": 2}
    print(f"\n## First step at {len(many):,} rows, small model\n")
    seen = [run_side("ours", {}, spec) for _ in range(args.runs)]
    print(
        f"ft-host, {args.runs} runs: {spread([each['first_step_s'] for each in seen])} s after the call, imports "
        f"{spread([each['imports_s'] for each in seen])} s before it",
        flush=True,
    )
    if args.with_trl:
        theirs = run_side("trl", {}, spec)
        print(f"TRL, one run: {theirs['first_step_s']:.1f} s after the call, imports {theirs['imports_s']:.1f} s")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=list(work.MODELS), default=list(work.MODELS))
    parser.add_argument("--against", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="TRL's settings")
    parser.add_argument("--runs", type=int, default=5, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="measured steps of a run (default: 6, with bigvocab 3)")
    parser.add_argument("--rows", type=int, default=2000, help="rows in the data file (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="JSON lines with prompt and completion, instead of made-up rows")
    parser.add_argument("--first-step", action="store_true", help="only the time to the first step, of ft-host")
    parser.add_argument("--with-trl", action="store_true", help="with --first-step: TRL too, once")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help=(
            "wait so long at most for a quiet "
            "machine before each process; run disturbed pairs again, and keep the least disturbed"
        ),
    )
    parser.add_argument("--out", type=Path, help="append what every run saw to this JSON lines file")
    args = parser.parse_args(argv)

    rows = work.read_rows(args.data) if args.data else work.made_rows(8000)
    tokenizer = work.make_tokenizer(rows)
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for name in ["small"] if args.first_step else args.model:
            work.make_model(at / name, name, tokenizer)
        if args.first_step:
            first_step(rows, args, at)
            return
        for name in args.model:
            for setting in args.against:
                compare(name, setting, rows, tokenizer, args, at)


if __name__ == "__main__":
    main()
