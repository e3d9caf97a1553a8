"""ft-host and TRL on the same GRPO and RLOO, process by process in turn, and medians of their ratios.

    python benchmarks/online.py                       both methods, both of TRL's settings, five pairs of runs each
    python benchmarks/online.py --method grpo --against plain --workload group long --repeats 3
    python benchmarks/online.py --wait 60 --json figures.json

Needs Linux, and TRL beside ft-host, ft-grpo and ft-rloo. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import work
from turns import (
    OTHERS,
    SETTINGS,
    Figures,
    Pair,
    common,
    noise,
    ratios,
    run_side,
    spread,
    summary,
    table,
    undisturbed,
    wait_for_quiet,
)

SKIP, MEASURED = 2, 5  # steps of a run: in the first two ft-host looks whether its sampler has the policy's weights
GENERATIONS = 8  # completions of a prompt
TOLERANCE = 0.05  # of completion tokens between two sides: a completion may end early, each side's own

BATCH = GENERATIONS  # completions of a micro-batch, on both sides; see README.md for why not more


@dataclass(frozen=True)
class Workload:
    prompts: int  # of an optimizer step, each with GENERATIONS completions
    words: float  # of a prompt; a word is about one token
    new_tokens: int  # of a completion, at most

    @property
    def completions(self) -> int:
        return self.prompts * GENERATIONS


WORKLOADS = {"group": Workload(8, 95, 64), "long": Workload(4, 245, 128)}
MEMORY = {"peak over start": 0.30}
GOALS = {  # ours to theirs, of the workload group
    ("grpo", "plain"): {"completions/s": 2.8} | MEMORY,
    ("grpo", "best"): {"completions/s": 2.1} | MEMORY,
}
UNITS = {
    "completions/s": "",
    "steps/s": "",
    "s/step": "s",
    "generation": "s/step",
    "rewards and reference": "s/step",
    "training": "s/step",
    "tokens/CPU second": "",
    "peak over start": "MiB",
    "peak": "MiB",
    "first step": "s",
    OTHERS: "",
}


# ---------------------------------------------------------------- a pair


def spec_of(side: str, method: str, load: Workload, batch: int, rows: Path, model: Path, steps: int) -> dict[str, Any]:
    """What a side is told, with `batch` completions in a micro-batch. Other fields are as by default, on which the two
    agree."""
    both = {
        "num_generations": GENERATIONS,
        "max_completion_length": load.new_tokens,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": load.completions // batch,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
    }
    in_order = {"ours": {"train_sampling_strategy": "sequential"}, "trl": {"shuffle_dataset": False}}[side]
    return {"method": method, "model": str(model), "rows": str(rows), "steps": steps, "both": both, side: in_order}


def check_same_size(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """How far the completion tokens of two runs are apart (relative). Each side samples its own, so that no loss can be
    compared; raises SystemExit where they had other prompts, rows or learning rates, a gradient isn't finite, or the
    tokens are further apart than chance makes them."""
    for what in ("rows", "rates"):
        if ours[what] != theirs[what]:
            raise SystemExit(f"not the same work: {what} of each step are {ours[what]} here, {theirs[what]} in TRL")
    prompts = [
        [total - said for total, said in zip(seen["tokens"], seen["supervised"], strict=True)]
        for seen in (ours, theirs)
    ]
    if prompts[0] != prompts[1]:
        raise SystemExit(f"not the same work: prompt tokens of each step are {prompts[0]} here, {prompts[1]} in TRL")
    for who, seen in (("here", ours), ("in TRL", theirs)):
        if not all(map(math.isfinite, seen["grad_norms"])):
            raise SystemExit(f"a gradient isn't finite {who}: its norms are {seen['grad_norms']}")
    mine, other = sum(ours["supervised"]), sum(theirs["supervised"])
    if abs(mine - other) > TOLERANCE * other:
        raise SystemExit(f"not the same work: {mine} completion tokens here, {other} in TRL")
    return abs(mine - other) / other


def numbers(seen: dict[str, Any]) -> Figures:
    seconds, parts = seen["seconds"][SKIP:], seen["parts"][SKIP:]
    generation, rollout = ([each[what] for each in parts] for what in ("generation", "rollout"))
    return common(seen, SKIP) | {
        "completions/s": sum(seen["rows"][SKIP:]) / sum(seconds),
        "steps/s": len(seconds) / sum(seconds),
        "generation": statistics.median(generation),
        "rewards and reference": statistics.median(a - b for a, b in zip(rollout, generation, strict=True)),
        "training": statistics.median(a - b for a, b in zip(seconds, rollout, strict=True)),
        "completion tokens": sum(seen["supervised"][SKIP:]),
        "reward processes": seen["children_mb"],
    }


# ---------------------------------------------------------------- what came out


def compare(method: str, setting: str, name: str, prompts: list[work.Row], args: argparse.Namespace, at: Path) -> dict:
    """Pairs of one comparison, printed; and the same as a JSON-able result."""
    load, steps = WORKLOADS[name], SKIP + args.steps
    batches = dict(zip(("ours", "trl"), args.batch, strict=True))

    def train(side: str, number: int, batch: int) -> dict[str, Any]:
        """What a side saw, on the prompts of this pair."""
        file = at / f"{name}-{number}.jsonl"
        work.write_rows(file, work.in_order(prompts, None, number)[: steps * load.prompts])
        wait_for_quiet(args.wait)
        environment = SETTINGS[setting] if side == "trl" else {}
        return run_side(side, environment, spec_of(side, method, load, batch, file, at / "model", steps))

    def pair_number(number: int) -> Pair:
        seen = [train(side, number, batch) for side, batch in batches.items()]
        check_same_size(*seen)
        ours, theirs = map(numbers, seen)
        print(
            f"{name}, {method}, {setting}, pair {number + 1}: {ours['completions/s']:.2f} and"
            f" {theirs['completions/s']:.2f} completions/s (tokens a CPU second: {ours['tokens/CPU second']:.0f} and"
            f" {theirs['tokens/CPU second']:.0f}), {ours['peak over start']:.0f} and {theirs['peak over start']:.0f}"
            f" MiB; others: {ours[OTHERS]:.1f} and {theirs[OTHERS]:.1f} cores",
            file=sys.stderr,
            flush=True,
        )
        return ours, theirs

    pairs, made = undisturbed(pair_number, lambda pair: noise(*pair), args.repeats, args.wait)
    goals = GOALS.get((method, setting), {}) if name == "group" else {}
    print(f"\n## {method}, {name}, against TRL {setting}\n")
    print(
        f"{len(pairs)} of {made} pairs, {args.steps} steps of {load.completions} completions measured after {SKIP}; "
        f"micro-batches of {batches['ours']} and {batches['trl']}.\n"
    )
    print(table(UNITS, goals, pairs))
    said = [spread([pair[side]["completion tokens"] for pair in pairs]) for side in (0, 1)]
    most = args.steps * load.completions * load.new_tokens
    print(
        f"\nCompletion tokens of the measured steps, of {most} at most: ft-host {said[0]}, TRL {said[1]}. ft-host's"
        f" process for rewards: {spread([ours['reward processes'] for ours, _ in pairs])} MiB at its peak.",
        flush=True,
    )
    # once: the memory that a side can do with, where it was given larger micro-batches
    small = {side: numbers(train(side, 0, BATCH)) for side, batch in batches.items() if batch != BATCH}
    for side, once in small.items():
        print(
            f"{'ft-host' if side == 'ours' else 'TRL'} with micro-batches of {BATCH}, one run: "
            f"{once['peak over start']:.0f} MiB over start, {once['completions/s']:.2f} completions/s.",
            flush=True,
        )
    middle = {key: statistics.median(ratios(key, pairs)) for key in ("completions/s", "peak over start", "peak")}
    return {
        "workload": name,
        "method": method,
        "setting": setting,
        "unit": "completions/s",
        "goals": goals,
        "ratios": middle,
        "skipped": SKIP,
        "measured": args.steps,
        "batches": batches,
        "pairs": pairs,
        "small": small,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = ["grpo", "rloo"]
    parser.add_argument("--method", nargs="+", choices=methods, default=methods)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=["group"], help="default: group")
    parser.add_argument("--against", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="TRL's settings")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=MEASURED, help="measured steps of a run (default: %(default)s)")
    parser.add_argument(
        "--batch",
        nargs=2,
        type=int,
        metavar=("OURS", "TRL"),
        default=(BATCH, BATCH),
        help="completions of a micro-batch, per side (default: %(default)s)",
    )
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
    parser.add_argument("--json", type=Path, help="write what came out to this file")
    args = parser.parse_args(argv)
    for size in args.batch:
        if any(size < 1 or WORKLOADS[name].completions % size for name in args.workload):
            parser.error(f"--batch: the completions of a step can't be cut into micro-batches of {size}")

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        texts = {name: work.made_prompts(2000, load.words) for name, load in WORKLOADS.items()}
        work.make_model(at / "model", "small", work.make_tokenizer(texts["group"]))  # the words are the same in both
        for name in args.workload:
            for method in args.method:
                for setting in args.against:
                    results.append(compare(method, setting, name, texts[name], args, at))
                    if args.json:
                        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n## All ratios: ft-host to TRL\n")
    print(summary(results, {"workload": "workload", "method": "method", "setting": "TRL"}))


if __name__ == "__main__":
    main()
