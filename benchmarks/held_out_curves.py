"""Held-out curves of several runs as one SVG: each name's mean over its runs (of several seeds, say), and faint, each
run.

python benchmarks/held_out_curves.py docs/arithmetic-sdpo.svg sdpo=runs/sdpo-0,runs/sdpo-1 grpo=runs/grpo-0,runs/grpo-1
"""

from __future__ import annotations

import argparse
from pathlib import Path

from curves import side_by_side

from ft_host.rundir.record import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN,RUN...")
    parser.add_argument("--metric", default="eval_rewards/exact_match/mean", help="default: %(default)s")
    parser.add_argument("--heading", default="exact_match of held-out prompts", help="default: %(default)s")
    args = parser.parse_args()
    curves = {}
    for each in args.runs:
        name, _, folders = each.partition("=")
        curves[name] = [read_run(Path(folder)).evals[args.metric] for folder in folders.split(",")]
    told = []
    for name, those in curves.items():
        first, last = (sum(getattr(series, end) for series in those) / len(those) for end in ("first", "last"))
        least, most = min(series.last for series in those), max(series.last for series in those)
        told.append(
            f"{name} {first:.3g} before, {last:.3g} after" + (f" ({least:.3g} to {most:.3g})" if len(those) > 1 else "")
        )
    spoken = f"{args.heading}: " + "; ".join(told)
    args.svg.write_text(side_by_side(args.heading, curves, spoken), encoding="utf-8")
    print(*told, sep="\n")


if __name__ == "__main__":
    main()
