"""What samples of older weights cost on the built-in task: held-out exact_match by step and by the clock, of sync,
overlap and async with several bounds, with and without the correction.

    python benchmarks/staleness.py --run sync async-1 async-1-none async-4 async-4-none --reward-ms 5
    python benchmarks/staleness.py --method distill --run sync overlap-4 async-4 --learning-rate 1e-3

A run is a mode, its `max_staleness` and, with grpo and ppo, `none` for importance_sampling_correction: none. Each is a
process of its own with one thread a side; the models that they begin with are made first, as
examples/arithmetic/README.md does. OUT gets the runs, and figures and picture as staleness-….json and .svg, named for
method, rate and wait; runs that it holds already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

from curves import points, two_sides
from kept import finished
from turns import wait_for_quiet

from ft_host.rundir.record import read_run
from ft_host.rundir.series import Series

ROOT = Path(__file__).parent.parent
ARITHMETIC = ROOT / "examples" / "arithmetic"
HELD_OUT = "eval_rewards/exact_match/mean"
# Of the models to begin with: the example's run.yaml, and what is changed in it.
BEGINNINGS: dict[str, dict[str, Any]] = {
    "few": {"dataset": "data/few.jsonl", "max_steps": 300},
    "teacher": {"seed": 1},
    "small": {"model": "small", "dataset": "data/few.jsonl", "max_steps": 600},
}
REWARDED = {"model": "few", "per_device_train_batch_size": 320, "max_steps": 120, "learning_rate": 2.5e-4}
# Of each method: what is changed in its file of the example.
METHODS: dict[str, dict[str, Any]] = {
    "grpo": REWARDED | {"eval_steps": 20},
    "ppo": REWARDED | {"max_steps": 240, "eval_steps": 40},  # two updates of a rollout
    "distill": {"model": "small", "teacher_model_name_or_path": "teacher"},
}


def trained(out: Path, name: str, arguments: dict[str, Any], file: Path, wait: float) -> Path:
    """The folder of a run, which is made unless it is there and whole."""
    run = out / name
    if finished(run):
        return run
    method = "sft" if file.stem == "run" else file.stem
    command = [sys.executable, "-m", "ft_host", "train", method, str(file), "--output-dir", str(run)]
    for key, value in ({"progress": "quiet"} | arguments).items():
        command += [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    wait_for_quiet(wait)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return run


def beginning(out: Path, name: str) -> Path:
    """The model that training begins with, or the teacher."""
    if not (ARITHMETIC / "data").exists():
        subprocess.run([sys.executable, str(ARITHMETIC / "make.py")], cwd=ROOT, check=True)
    places = {"model", "dataset"}
    given = {key: str(ARITHMETIC / value) if key in places else value for key, value in BEGINNINGS[name].items()}
    return trained(out, name, given, ARITHMETIC / "run.yaml", 0) / "model"


def mode_of(run: str) -> dict[str, Any]:
    """The fields that `sync`, `overlap-4` or `async-1-none` stand for."""
    mode, *rest = run.split("-")
    fields: dict[str, Any] = {"rollouts": mode}
    if rest:
        fields["max_staleness"] = int(rest[0])
    if rest[1:] == ["none"]:
        fields["importance_sampling_correction"] = "none"
    elif rest[1:]:
        raise SystemExit(f"--run {run}: expected a mode, its bound and none, as in async-4-none")
    return fields


def by_clock(held_out: Series, step_time: Series) -> Series:
    """The same values over the seconds of the steps before them, without those of evaluations."""
    ends = dict(zip(step_time.steps, accumulate(step_time.values), strict=True))
    moved = Series()
    for step, value in zip(held_out.steps, held_out.values, strict=True):
        moved.put(ends[step] if step else 0.0, value)
    return moved


def mean_of(series: Series | None) -> float | None:
    values = series.finite() if series else []
    return sum(values) / len(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(METHODS), default="grpo", help="default: %(default)s")
    parser.add_argument("--run", nargs="+", default=["sync", "async-1", "async-4"], help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: %(default)s")
    parser.add_argument("--reward-ms", type=int, choices=(0, 5), default=0, help="a completion (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, help="not set: 2.5e-4; distill 3e-3")
    parser.add_argument("--out", type=Path, default=Path("runs/staleness"), help="default: %(default)s")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="so long at most for a quiet machine")
    args = parser.parse_args()
    if args.reward_ms and args.method == "distill":
        parser.error("--reward-ms: distill learns from no reward")

    fields = dict(METHODS[args.method])
    for key in ("model", "teacher_model_name_or_path"):
        if key in fields:
            fields[key] = str(beginning(args.out, fields[key]).resolve())
    told = args.method
    if args.learning_rate:
        fields["learning_rate"] = args.learning_rate
        told += f"-{args.learning_rate:g}"
    if args.reward_ms:
        slow = f"{Path(__file__).with_name('rewards.py')}:exact_match_after_5_ms"
        fields |= {"reward": [slow, f"{ARITHMETIC / 'rewards.py'}:right_lines"], "reward_workers": 8}
        fields["eval_reward"] = [f"{ARITHMETIC / 'rewards.py'}:exact_match"]
        told += f"-{args.reward_ms}ms"
    file = args.out / f"staleness-{told}.json"  # an earlier call's figures stay, but for those that are made again
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    steps: dict[str, list[Series]] = {}
    clock: dict[str, list[Series]] = {}
    for run in args.run:
        found[run] = [each for each in found.get(run, []) if each["seed"] not in args.seeds]
        for seed in args.seeds:
            given = fields | mode_of(run) | {"seed": seed}
            folder = trained(args.out, f"{told}-{run}-{seed}", given, ARITHMETIC / f"{args.method}.yaml", args.wait)
            record = read_run(folder)
            held_out = record.evals[HELD_OUT]
            timed = by_clock(held_out, record.train["perf/step_time"])
            steps.setdefault(run, []).append(held_out)
            clock.setdefault(run, []).append(timed)
            found[run].append(
                {
                    "seed": seed,
                    "exact_match": points(held_out),
                    "by seconds": points(timed),
                    "staleness": mean_of(record.train.get("rollouts/staleness_mean")),
                    "ess": mean_of(record.train.get("rollouts/ess")),
                }
            )
            each = found[run][-1]
            means = ", ".join(f"{name} {each[name]:.3g}" for name in ("staleness", "ess") if each[name] is not None)
            print(f"{told} {run}, seed {seed}: {held_out.first:.3g} before, {held_out.last:.3g} after", end=" ")
            print(f"{timed.steps[-1]:.0f} s of steps; {means}", flush=True)
        found[run].sort(key=lambda each: each["seed"])
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    spoken = f"exact_match of held-out prompts, {args.method}: " + "; ".join(
        f"{run} {those[0].last:.3g} after {clock[run][0].steps[-1]:.0f} s" for run, those in steps.items()
    )
    drawn = two_sides("exact_match of held-out prompts", {"step": steps, "second": clock}, spoken)
    (args.out / f"staleness-{told}.svg").write_text(drawn + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
