"""sync, overlap and async of the same GRPO run: seconds a step, and how near they are to what the machine allows.

    python benchmarks/asynchronous.py                           rewards of 0, 50 and 200 ms a completion, three rounds
    python benchmarks/asynchronous.py --reward 50 --mode sync async --rounds 1 --wait 60 --json figures.json
    python benchmarks/asynchronous.py --reward 0 --mode sync overlap --staleness 8
    python benchmarks/asynchronous.py --reward 0 --prompts 2    few rows, so that a token costs what it does for one row

Needs ft-grpo beside ft-host, and two cores: each side has one thread. See README.md for what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import work
from transformers import AutoModelForCausalLM
from turns import spread, wait_for_quiet

GENERATIONS = 8  # of a prompt
ROWS = 64  # that are decoded at a time, at most
SKIP = 8  # steps that are not counted: those in which the first rollouts ahead are begun
WARM = 2  # the same of sync, which begins at the prompt of its seventh step: what is counted has the same prompts
SHORT, LONGEST = 25, 480  # tokens of most completions, and of the longest one
LONG, LOCKED = 32, 1.7  # tokens that keep a completion going, and how much
WORKERS = 8  # processes for rewards; those that wait take no core
KEPT = {"recompute_cache": False}  # keys and values stay over an update; by default they are computed anew
STALENESS = 4  # of overlap: a completion that takes longer than so many further rollouts holds one up
MODES: dict[str, dict[str, Any]] = {
    "sync": {},
    "overlap": {"rollouts": "overlap", "max_staleness": STALENESS, **KEPT},
    "async": {"rollouts": "async", "max_staleness": 2, **KEPT},
}
SHARE = 0.9  # goal: async's share of the bound


def make_model(folder: Path) -> None:
    """A model with random weights whose completions have a long tail: at each token they end with the same probability,
    but after one of a few tokens they go on with those, and a tenth as many of them end, as a model does that has begun
    to think, or to repeat itself."""
    texts = work.made_prompts(400, 30)
    tokenizer = work.make_tokenizer(texts)
    work.make_model(folder, "small", tokenizer)
    ends = list(range(2, 2 + work.VOCABULARY // SHORT))
    written = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(written | {"eos_token_id": ends}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # embeddings are tied: what has much of this direction is followed by what has it
        weight = model.get_input_embeddings().weight
        weight[-LONG:, 0] = LOCKED
    model.save_pretrained(folder)


def run(mode: str, reward: int, at: Path, number: int, steps: int, prompts: int = 8) -> dict[str, float]:
    """Seconds of a step, and what they are made of, of one run in a process of its own."""
    skip = WARM if mode == "sync" else SKIP
    rows = at / f"prompts-{number}.jsonl"
    made = work.made_prompts(prompts * (SKIP + steps + 8), 30, seed=number)
    work.write_rows(rows, made[prompts * (SKIP - skip) :])
    folder = at / f"{mode}-{reward}-{number}"
    config = {
        "method": "grpo",
        "model": str(at / "model"),
        "dataset": str(rows),
        "output_dir": str(folder),
        "reward": [f"{Path(__file__).with_name('rewards.py')}:after_{reward}_ms"],
        "reward_workers": WORKERS,
        "num_generations": GENERATIONS,
        "per_device_train_batch_size": GENERATIONS,
        "gradient_accumulation_steps": prompts,
        "max_completion_length": LONGEST,
        "decode_batch_size": ROWS,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-7,
        "max_steps": skip + steps,
        "save_steps": 0,
        "progress": "quiet",
    } | MODES[mode]
    file = at / "run.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "ft_host", "train", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{mode} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return figures([line for line in lines if line["kind"] == "train"][skip:], reward, prompts)


def figures(lines: list[dict[str, Any]], reward: int, prompts: int) -> dict[str, float]:
    """What the counted steps took on average. `bound`: the slowest of the three parts by itself, as if each was always
    busy."""
    size = prompts * GENERATIONS

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    tokens = [line["completions/mean_length"] * size for line in lines]
    rates = [line.get("perf/generation_tokens_per_second", 0.0) for line in lines]
    generate = mean([count / rate for count, rate in zip(tokens, rates, strict=True) if rate])
    train = mean([line["perf/train_time"] + line.get("perf/annotation_time", 0.0) for line in lines])
    score = reward / 1000 * size / WORKERS
    step = mean([line["perf/step_time"] for line in lines])
    bound = max(generate, train, score)
    found = {"s/step": step, "generate": generate, "score": score, "train": train, "bound": bound}
    return found | {"tokens": mean(tokens)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--reward", nargs="+", type=int, choices=(0, 50, 200), default=[0, 50, 200], help="ms each")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, in turn (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="counted steps of a run (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="of an optimizer step (default: %(default)s)")
    parser.add_argument("--staleness", type=int, default=STALENESS, help="of overlap (default: %(default)s)")
    parser.add_argument(
        "--async-staleness", type=int, default=MODES["async"]["max_staleness"], help="of async (default: %(default)s)"
    )
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="so long at most for a quiet machine")
    parser.add_argument("--json", type=Path, help="write what came out to this file")
    args = parser.parse_args(argv)
    MODES["overlap"]["max_staleness"] = args.staleness
    MODES["async"]["max_staleness"] = args.async_staleness
    results = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        make_model(at / "model")
        for reward in args.reward:
            seen: dict[str, list[dict[str, float]]] = {mode: [] for mode in args.mode}
            for number in range(args.rounds):
                for mode in args.mode:
                    wait_for_quiet(args.wait)
                    seen[mode].append(run(mode, reward, at, number, args.steps, args.prompts))
                    print(f"{reward} ms, {mode}, round {number + 1}: {seen[mode][-1]}", file=sys.stderr, flush=True)
            results.append({"reward": reward, "runs": seen})
            print(f"\n## Rewards of {reward} ms a completion\n\n{table(seen)}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def table(seen: dict[str, list[dict[str, float]]]) -> str:
    """A line for each mode, medians with their range; beside sync, how many times faster, round by round."""
    keys = ["s/step", "generate", "score", "train"]
    lines = [f"| | {' | '.join(keys)} | times sync |", "| --- " * (len(keys) + 2) + "|"]
    for mode, runs in seen.items():
        cells = [spread([each[key] for each in runs]) for key in keys]
        beside = [a["s/step"] / b["s/step"] for a, b in zip(seen.get("sync", []), runs, strict=False)]
        cells.append(spread(beside) if beside and mode != "sync" else "")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    if "async" in seen:
        shares = {"its own": [each["bound"] / each["s/step"] for each in seen["async"]]}
        if "sync" in seen:  # its parts were measured without the others beside them
            pairs = zip(seen["sync"], seen["async"], strict=True)
            shares["sync's"] = [alone["bound"] / each["s/step"] for alone, each in pairs]
        for whose, found in shares.items():
            verdict = "met" if statistics.median(found) >= SHARE else "missed"
            lines.append(f"\nasync at least {SHARE} of the bound of {whose} parts: {verdict} ({spread(found)}).")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
