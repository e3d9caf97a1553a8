"""The curve of a run that learns from rewards, as an SVG.

    python benchmarks/reward_curve.py runs/arithmetic-grpo docs/arithmetic-grpo.svg

Two panels: a reward, of the completions that were trained on (sampled) and of held-out prompts, and the entropy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from curves import Panel, picture

from ft_host.rundir.record import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--reward", default="exact_match", help="default: %(default)s")
    args = parser.parse_args()
    record = read_run(args.run)
    name = f"rewards/{args.reward}/mean"
    held_out = record.evals[f"eval_{name}"]
    entropy = record.train.get("entropy") or record.train["policy/entropy_avg"]
    panels = [Panel(f"{args.reward}", held_out, record.train[name]), Panel("entropy of a token, nats", None, entropy)]
    spoken = (
        f"{record.method}: {args.reward} on held-out prompts {held_out.first:.3g} before, {held_out.last:.3g} after"
    )
    args.svg.write_text(picture(panels, spoken), encoding="utf-8")
    print(spoken, f"({record.steps} steps, {record.seconds:.0f} s)")


if __name__ == "__main__":
    main()
