"""Ten faulty run files, drawn from the benchmark of faults by a fixed seed, each given to the autopilot: how near does
it come to the healthy run, with no hand on it?

    python benchmarks/autopilot.py --work runs/faults --out runs/faults/autopilot.jsonl --seeds 3 4 5 --jobs 2
    python benchmarks/autopilot.py --out runs/faults/autopilot.jsonl --table

The pool are the faults that lie in the config alone, in fields that an autopilot may change (no data, models, rewards).
The healthy run is the same file without the faulty fields, with the method's usual values.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "faults"))

import material  # noqa: E402
from cases import BASE, CASES  # noqa: E402
from run import held_out, placed, results, seed_folder  # noqa: E402

from ft_host.rundir.format import better  # noqa: E402

# Case -> the fields that are its fault; what else it sets belongs to the healthy run too.
POOL: dict[str, tuple[str, ...]] = {
    "sft-rate-x100": ("learning_rate",),
    "sft-tuned-rate-x100": ("learning_rate",),
    "sft-rate-1000th": ("learning_rate",),
    "dpo-rate-x100": ("learning_rate",),
    "dpo-rate-1000th": ("learning_rate",),
    "kto-rate-x100": ("learning_rate",),
    "reward-rate-1000th": ("learning_rate",),
    "grpo-rate-x30": ("learning_rate", "warmup_steps"),
    "grpo-rate-1000th": ("learning_rate",),
    "rloo-rate-x30": ("learning_rate", "warmup_steps"),
    "ppo-rate-x30": ("learning_rate", "warmup_steps", "num_ppo_epochs"),
    "sft-short-max-length": ("max_length",),
    "sft-tight-clipping": ("max_grad_norm",),
    "sft-bf16-weights": ("dtype", "learning_rate"),
    "sft-lora-on-nothing": ("lora_target_modules",),
    "sft-lora-weak": ("lora_r", "lora_alpha", "learning_rate", "lora_target_modules"),
    "sft-router-loss": ("router_aux_loss_coef",),
    "dpo-dropout": ("disable_dropout",),
    "dpo-displacement": ("learning_rate", "beta"),
    "kto-two-rows": ("per_device_train_batch_size", "learning_rate"),
    "grpo-cut-short": ("max_completion_length",),
    "ppo-cut-short": ("max_completion_length",),
    "grpo-entropy-explosion": ("entropy_coef", "learning_rate"),
    "grpo-cold": ("temperature",),
    "grpo-kl": ("beta", "learning_rate", "warmup_steps"),
    "grpo-clipped": ("num_iterations", "learning_rate", "warmup_steps"),
    "ppo-clipped": ("num_ppo_epochs", "learning_rate", "warmup_steps"),
    "grpo-narrow-sampling": ("top_p",),
}
DRAWN = sorted(random.Random(0).sample(sorted(POOL), 10))
BUDGET = 5
NEAR = 0.05


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the benchmark of faults, for data, models and runs")
    parser.add_argument("--out", type=Path, required=True, help="file that a line is added to for each run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5], help="default: 3 4 5")
    parser.add_argument("--files", nargs="+", default=DRAWN, help="default: the ten that were drawn")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of what --out has, and run nothing")
    args = parser.parse_args(argv)
    if not args.table:
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
        for seed in args.seeds:
            material.make(seed_folder(args.work, seed), seed)
        done = {(each["case"], each["seed"]) for each in results(args.out)}
        waiting = [
            (name, seed)
            for seed in args.seeds
            for file in args.files
            for name in (file, f"healthy {file}")
            if (name, seed) not in done
        ]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(args.jobs) as pool, args.out.open("a") as out:
            for job in as_completed([pool.submit(run, name, args.work, seed) for name, seed in waiting]):
                out.write(json.dumps(job.result()) + "\n")
                out.flush()
                print(json.dumps(job.result()), flush=True)
    print(table(results(args.out)))
    return 0


def run(name: str, work: Path, seed: int) -> dict[str, Any]:
    """The autopilot on a faulty file, or plain training on a healthy one."""
    healthy = name.startswith("healthy ")
    case = CASES[name.removeprefix("healthy ")]
    folder = seed_folder(work, seed) / "autopilot" / name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    left_out = POOL[case.name] if healthy else ()
    values = BASE[case.method] | {field: value for field, value in case.config.items() if field not in left_out}
    del values["save_steps"]  # the autopilot's business
    values = {field: placed(value, seed_folder(work, seed)) for field, value in values.items()} | {"seed": seed}
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(values))
    started = time.perf_counter()
    command = [sys.executable, "-m", "ft_host", "train" if healthy else "autopilot", case.method, str(file)]
    command += ["--output_dir", str(folder)] if healthy else ["--budget", str(BUDGET), "--output", str(folder)]
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=(folder.parent / f"{folder.name}.log").open("w"), check=False
    )
    changes, best = [], folder
    if not healthy:
        told = json.loads((folder / "autopilot.json").read_text())
        changes = [
            each["change"] and {"finding": each["change"]["finding"], "patch": each["change"]["patch"]}
            for each in told["attempts"]
        ]
        best = Path(told["attempts"][(told["best"] or len(told["attempts"])) - 1]["folder"])
    lines = material.read_rows(best / "metrics.jsonl") if (best / "metrics.jsonl").is_file() else []
    return {
        "case": name,
        "seed": seed,
        "changes": changes,
        "held_out": held_out(lines),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(found: list[dict[str, Any]]) -> str:
    """File by file: the healthy run's held-out metric, the autopilot's, and what it did."""
    rows = [
        "| run file | metric | healthy | autopilot | within 5 % | attempts | what was changed (first seed) |",
        "|---|---|---:|---:|---|---:|---|",
    ]
    near = 0
    paired = {
        (each["case"].removeprefix("healthy "), each["seed"]) for each in found if each["case"].startswith("healthy ")
    }
    found = [each for each in found if (each["case"].removeprefix("healthy "), each["seed"]) in paired]
    names = sorted({each["case"] for each in found if not each["case"].startswith("healthy ")})
    for name in names:
        mine = [each for each in found if each["case"] == name]
        right = {each["seed"]: each["held_out"]["last"] for each in found if each["case"] == f"healthy {name}"}
        metric = next(each["held_out"]["metric"] for each in found if each["case"] == f"healthy {name}")
        ended = {each["seed"]: each["held_out"].get("last") for each in mine}
        whole = all(isinstance(value, float) for value in [*ended.values(), *right.values()]) and set(ended) <= set(
            right
        )
        ours = mean(ended.values()) if whole else None
        theirs = mean(right[seed] for seed in ended)
        way = better(metric)
        good = whole and way * (ours - theirs) >= -NEAR * abs(theirs)
        near += good
        attempts = mean(len(each["changes"]) for each in mine)
        rows.append(
            f"| {name} | {metric} | {theirs:.3f} | {'none' if ours is None else f'{ours:.3f}'} | "
            f"{'yes' if good else 'no'} | {attempts:.1f} | {said(mine[0]['changes'])} |"
        )
    return "\n".join([*rows, "", f"{near} of {len(names)} within {NEAR:.0%} of the healthy run, or better."])


def said(changes: list[dict[str, Any] | None]) -> str:
    told = []
    for change in changes:
        for field, (old, new) in (change["patch"] if change else {}).items():
            told.append(f"{change['finding']}: {field} {old} → {new}")
    return "; ".join(told) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
