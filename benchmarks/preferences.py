"""ft-host and TRL on the same DPO, KTO and reward modelling, process by process in turn, and medians of their ratios.

    python benchmarks/preferences.py                  all methods, both shapes of rows, both of TRL's settings
    python benchmarks/preferences.py --method dpo-live dpo-cached --shape long --against plain --repeats 5
    python benchmarks/preferences.py --rows pairs.jsonl --json figures.json

Needs Linux, and TRL beside ft-host, ft-dpo, ft-kto and ft-reward. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
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
    ratios,
    run_side,
    spread,
    summary,
    table,
    undisturbed,
    wait_for_quiet,
)

Fields = dict[str, Any]

SKIP, MEASURED = 1, 2  # steps of a run
# High enough that the losses of the second step already tell whether both sides learned the same from the first.
BOTH = {"learning_rate": 1e-4, "lr_scheduler_type": "linear", "warmup_steps": 0}
DPO, REWARD, KTO = ({"peak over start": share} for share in (0.25, 0.35, 0.28))  # of memory


@dataclass(frozen=True)
class Comparison:
    """What each side is told of a method, and what ours should reach beside theirs, by TRL's setting."""

    method: str
    ours: Fields = field(default_factory=dict)
    trl: Fields = field(default_factory=dict)
    goals: dict[str, Figures] = field(default_factory=dict)


COMPARISONS = {
    # a frozen reference that both ask at each step
    "dpo-live": Comparison(
        "dpo",
        ours={"precompute_ref_log_probs": False},
        goals={"plain": {"pairs/s": 3.0} | DPO, "best": {"pairs/s": 1.9} | DPO},
    ),
    # ours as it is by default, the log-probs of the reference on disk, beside TRL as it is by default
    "dpo-cached": Comparison(
        "dpo", ours={"precompute_ref_log_probs": True}, goals={"plain": {"pairs/s": 4.0} | DPO, "best": DPO}
    ),
    # on both sides on disk
    "dpo-both-cached": Comparison(
        "dpo", ours={"precompute_ref_log_probs": True}, trl={"precompute_ref_log_probs": True}
    ),
    # the KL estimate that TRL makes, and a reference that both ask at each step
    "kto": Comparison(
        "kto", ours={"kl_scope": "micro_batch", "precompute_ref_log_probs": False}, goals={"plain": KTO, "best": KTO}
    ),
    "reward": Comparison("reward", goals={"plain": {"pairs/s": 1.8} | REWARD, "best": {"pairs/s": 1.8} | REWARD}),
}
USUAL = ["dpo-live", "dpo-cached", "kto", "reward"]


def unit_of(method: str) -> str:
    return "rows/s" if method == "kto" else "pairs/s"


def numbers(seen: dict[str, Any], method: str, skip: int) -> Figures:
    measured = seen["seconds"][skip:]
    return common(seen, skip) | {unit_of(method): work.BATCH * len(measured) / sum(measured)}


def units_of(method: str) -> dict[str, str]:
    rows = {unit_of(method): "", "s/step": "s", "tokens/s": "", "tokens/CPU second": ""}
    return rows | {"peak over start": "MiB", "peak": "MiB", "first step": "s", OTHERS: ""}


# ---------------------------------------------------------------- a round


@dataclass(frozen=True)
class Job:
    """What the processes of a round have in common."""

    method: str
    model: Path
    rows: Path
    steps: int
    skip: int
    setting: str
    wait: float


def train(job: Job, side: str, fields: Fields) -> dict[str, Any]:
    """What one side saw. Where our log-probs are made ahead, one process makes them, and another one finds them and is
    measured: `ahead_s` is of the first, `again_s` of the second. TRL's are made in the process that is measured, before
    its training begins, since a second one of it makes them again."""
    spec = {
        "method": job.method,
        "model": str(job.model),
        "rows": str(job.rows),
        "steps": job.steps,
        "both": BOTH,
        side: fields,
    }
    environment = SETTINGS[job.setting] if side == "trl" else {}
    with tempfile.TemporaryDirectory() as cache:
        made = None
        if side == "ours" and fields.get("precompute_ref_log_probs"):
            made = run_side(side, environment, spec, Path(cache))
        if job.wait:
            wait_for_quiet(job.wait)
        seen = run_side(side, environment, spec, Path(cache))
    return seen | {"ahead_s": made["ahead_s"], "again_s": seen["ahead_s"]} if made else seen


def one_round(job: Job, names: list[str]) -> dict[str, Pair]:
    """Each side of each comparison once, on the same rows, one after the other: figures of both by comparison.

    Runs that two comparisons share are made once. Raises SystemExit where two sides didn't do the same.
    """
    seen: dict[str, dict[str, Any]] = {}

    def once(side: str, fields: Fields) -> dict[str, Any]:
        key = side + json.dumps(fields)
        if key not in seen:
            seen[key] = train(job, side, fields)
        return seen[key]

    found = {}
    for name in names:
        comparison = COMPARISONS[name]
        pair = once("ours", comparison.ours), once("trl", comparison.trl)
        difference = check_same_work(*pair)
        ours, theirs = (numbers(each, job.method, job.skip) for each in pair)
        for figures, side in ((ours, pair[0]), (theirs, pair[1])):
            figures |= {key.removesuffix("_s"): side[key] for key in ("ahead_s", "again_s") if side.get(key)}
        found[name] = (ours | {"difference": difference}, theirs)
    return found


# ---------------------------------------------------------------- what came out


def compare(
    model: str,
    shape: str,
    setting: str,
    names: list[str],
    rows: list[work.Row],
    tokenizer: Any,
    args: argparse.Namespace,
    at: Path,
) -> list[dict[str, Any]]:
    """Rounds of the comparisons `names`, which are of one method, printed; and the same as JSON-able results."""
    method = COMPARISONS[names[0]].method
    unit = unit_of(method)
    skip, measured = SKIP, args.steps
    given = work.judged(rows) if method == "kto" else rows
    lengths = work.lengths_of(given, tokenizer) if setting == "best" else None

    def noise_of(found: dict[str, Pair]) -> float:
        return max(noise(*pair) for pair in found.values())

    def round_number(number: int) -> dict[str, Pair]:
        file = at / f"{shape}-{setting}-{method}-{number}.jsonl"
        work.write_rows(file, work.in_order(given, lengths, number)[: work.BATCH * (skip + measured)])
        folder = at / f"{shape}-{model}{'-classifier' if method == 'reward' else ''}"
        job = Job(method, folder, file, skip + measured, skip, setting, args.wait)
        found = one_round(job, names)
        for name, (ours, theirs) in found.items():
            print(
                f"{model}, {shape}, {name}, {setting}, pair {number + 1}: {ours[unit]:.2f} and {theirs[unit]:.2f}"
                f" {unit}, {ours['peak over start']:.0f} and {theirs['peak over start']:.0f} MiB; others:"
                f" {ours[OTHERS]:.1f} and {theirs[OTHERS]:.1f} cores",
                file=sys.stderr,
                flush=True,
            )
        return found

    kept, made = undisturbed(round_number, noise_of, args.repeats, args.wait)
    results = []
    for name in names:
        pairs = [found[name] for found in kept]
        goals = COMPARISONS[name].goals.get(setting, {})
        print(f"\n## {name}, {model}, {shape} rows, against TRL {setting}\n")
        print(f"{len(kept)} of {made} rounds, {measured} steps measured after {skip}.\n")
        print(table(units_of(method), goals, pairs))
        print(
            f"\nLosses of the same step differ by at most {max(ours['difference'] for ours, _ in pairs):.1e}"
            " (relative)."
        )
        for side, who in enumerate(("ft-host", "TRL")):
            for key, what in (("ahead", "made"), ("again", "found again by the next process")):
                if key in pairs[0][side]:
                    seconds = spread([pair[side][key] for pair in pairs])
                    print(f"{who}: log-probs of {work.BATCH * (skip + measured)} pairs {what} in {seconds} s.")
        sys.stdout.flush()
        middle = {key: statistics.median(ratios(key, pairs)) for key in (unit, "peak over start", "peak")}
        results.append(
            {
                "model": model,
                "shape": shape,
                "setting": setting,
                "comparison": name,
                "unit": unit,
                "goals": goals,
                "ratios": middle,
                "skipped": skip,
                "measured": measured,
                "pairs": pairs,
            }
        )
    return results


def shapes_of(args: argparse.Namespace) -> dict[str, list[work.Row]]:
    """Rows by the name of their shape."""
    if args.rows:
        return {args.rows.stem: work.read_rows(args.rows, ("prompt", "chosen", "rejected"))}
    return {shape: work.made_pairs(3000, shape) for shape in args.shape}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(COMPARISONS), default=USUAL, help="default: %(default)s")
    parser.add_argument(
        "--shape", nargs="+", choices=list(work.SHAPES), default=list(work.SHAPES), help="of made-up rows"
    )
    parser.add_argument(
        "--rows", type=Path, help="JSON lines with prompt, chosen and rejected, instead of made-up rows"
    )
    parser.add_argument("--model", nargs="+", choices=list(work.MODELS), default=["small"], help="default: %(default)s")
    parser.add_argument("--against", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="TRL's settings")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=MEASURED, help="measured steps of a run (default: %(default)s)")
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help=(
            "wait so long at most for a quiet "
            "machine before each process; run disturbed rounds again, and keep the least disturbed"
        ),
    )
    parser.add_argument("--json", type=Path, help="write what came out to this file")
    args = parser.parse_args(argv)

    methods: dict[str, list[str]] = {}
    for name in COMPARISONS:
        if name in args.method:
            methods.setdefault(COMPARISONS[name].method, []).append(name)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        for shape, rows in shapes_of(args).items():
            tokenizer = work.make_tokenizer(rows)
            lengths = work.lengths_of(rows, tokenizer)
            # TRL's trainers cut, filter or drop longer ones each in their own way, and keep what is no preference
            fitting = [
                row
                for row, length in zip(rows, lengths, strict=True)
                if length <= work.MAX_LENGTH and row["chosen"] != row["rejected"]
            ]
            print(f"{shape}: {len(fitting)} of {len(rows)} pairs, up to {work.MAX_LENGTH} tokens long", file=sys.stderr)
            for model in args.model:
                work.make_model(at / f"{shape}-{model}", model, tokenizer)
                if "reward" in methods:
                    work.make_model(at / f"{shape}-{model}-classifier", model, tokenizer, classifier=True)
                for names in methods.values():
                    for setting in args.against:
                        results += compare(model, shape, setting, names, fitting, tokenizer, args, at)
                        if args.json:
                            args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n## All ratios: ft-host to TRL\n")
    print(summary(results, {"model": "model", "shape": "rows", "comparison": "comparison", "setting": "TRL"}))


if __name__ == "__main__":
    main()
