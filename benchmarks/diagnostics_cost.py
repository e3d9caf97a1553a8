"""What diagnostics cost: the time that the rules take for a step, on the metrics of a run that was made.

    python benchmarks/diagnostics_cost.py runs/arithmetic-grpo
    python benchmarks/diagnostics_cost.py runs/arithmetic-grpo --steps 5000     its lines again and again, as a long run

All rules of the host and of the run's method are asked, as in the run; reading and writing files isn't counted. A step
of half a second may take 2.5 ms of it (0.5 %).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from ft_host.diagnostics import Engine
from ft_host.diagnostics.collect import installed_rules
from ft_host.rundir.lines import read_json_lines
from ft_host.rundir.record import read_run

STEP = 0.5  # seconds


def longer(lines: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """The same lines again and again, numbered on."""
    last = max(line["step"] for line in lines)
    rounds = range(-(-steps // last))
    again = [
        line | {"step": line["step"] + last * number}
        for number in rounds
        for line in lines
        if line["step"] or not number
    ]
    return [line for line in again if line["step"] <= steps]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s; the median round counts")
    parser.add_argument("--steps", type=int, help="repeat the lines up to so many steps")
    args = parser.parse_args(argv)
    print("| run | rules | lines | median, ms a line | p99, ms | share of a step of 0.5 s |")
    print("|---|---:|---:|---:|---:|---:|")
    for folder in args.runs:
        record = read_run(folder)
        lines, _ = read_json_lines(Path(folder) / "metrics.jsonl")
        lines = longer(lines, args.steps) if args.steps else lines
        rules = [each for each in installed_rules(record.method)[0]]
        rounds = []
        for _ in range(args.rounds):
            engine = Engine(rules, record.config | {"locked_fields": []})
            engine.record_facts(record.facts | {"plan/total_steps": args.steps or record.planned_steps or len(lines)})
            times = []
            for line in lines:
                started = time.thread_time()  # what other processes do to the clock is left out
                engine.add_metrics(line)
                times.append(1000 * (time.thread_time() - started))
            rounds.append((statistics.mean(times), statistics.median(times), sorted(times)[int(0.99 * len(times))]))
        mean, median, worst = sorted(rounds)[len(rounds) // 2]
        print(
            f"| {record.name} ({record.method}) | {len(rules)} | {len(lines)} | {median:.2f} | {worst:.2f} | "
            f"{mean / 1000 / STEP:.2%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
