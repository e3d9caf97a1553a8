"""Methods with rollouts on real questions: one small model tuned on worked answers, what each method makes of it when
answers that follow from their calculations are paid for, and the curves as SVGs.

    python benchmarks/gsm8k_rollouts.py --data FOLDER --out OUT --method grpo rloo

FOLDER has sft.jsonl (prompt, completion), prompts.jsonl and test_prompts.jsonl (prompt, answer). What is paid for is in
gsm8k_rewards.py: a model of a few million parameters can't answer these questions, but it can learn to come to an end,
and to answer with what it has calculated. OUT gets the runs, curves.json and an SVG of each method; runs that it holds
already are not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import work
from curves import Panel, picture, points
from kept import finished

import ft_host
from ft_host.rundir.record import read_run

REWARDS = Path(__file__).with_name("gsm8k_rewards.py")
PAID, ANSWERED = ("answer_follows", "right_calculations"), "right_answer"
SHARED = {"lr_scheduler_type": "cosine", "warmup_steps": 10, "adam_beta2": 0.99, "save_steps": 0}


def tuned(args: argparse.Namespace) -> Path:
    """The model that all begin with: from random weights, on worked answers. Gives its folder."""
    from ft_sft.config import SFTConfig

    run = args.out / "sft"
    if not finished(run):
        rows = work.read_rows(args.data / "sft.jsonl")
        work.make_model(args.out / "random", "digits", work.make_tokenizer(rows, 2048, digits=True))
        ft_host.train(
            SFTConfig(
                model=str(args.out / "random"),
                dataset=str(args.data / "sft.jsonl"),
                output_dir=str(run),
                max_steps=args.sft_steps,
                per_device_train_batch_size=16,
                max_length=work.MAX_LENGTH,
                learning_rate=2e-3,  # from scratch: far above what suits a pretrained model
                **SHARED,
            )
        )
    return run / "model"


def learned(method: str, model: Path, args: argparse.Namespace) -> Path:
    """The run of one method."""
    from ft_grpo.config import GRPOConfig
    from ft_rloo.config import RLOOConfig

    run = args.out / method
    if finished(run):
        return run
    fields: dict[str, Any] = {"beta": 0.0} if method == "rloo" else {}
    config = {"grpo": GRPOConfig, "rloo": RLOOConfig}[method]
    ft_host.train(
        config(
            model=str(model),
            dataset=str(args.data / "prompts.jsonl"),
            eval_dataset=str(args.data / "test_prompts.jsonl"),
            output_dir=str(run),
            reward=[f"{REWARDS}:{name}" for name in PAID],
            eval_reward=[f"{REWARDS}:{name}" for name in (*PAID, ANSWERED)],
            eval_max_rows=args.held_out,
            eval_steps=max(1, args.steps // args.evaluations),
            max_steps=args.steps,
            num_generations=args.generations,
            per_device_train_batch_size=args.prompts * args.generations,
            max_tokens_per_micro_batch=8192,
            max_completion_length=args.new_tokens,
            decode_batch_size=128,
            learning_rate=args.lr,
            **fields,
            **SHARED,
        )
    )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gsm8k-rollouts"), help="default: %(default)s")
    parser.add_argument("--method", nargs="+", choices=("grpo", "rloo"), default=["grpo", "rloo"])
    parser.add_argument("--sft-steps", type=int, default=934, help="two passes over 7,473 rows (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--prompts", type=int, default=8, help="of a step (default: %(default)s)")
    parser.add_argument("--generations", type=int, default=8, help="of a prompt (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=160, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-4, help="default: %(default)s")
    parser.add_argument("--evaluations", type=int, default=5, help="beside the one before (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="questions of the test set (default: %(default)s)")
    args = parser.parse_args()

    model = tuned(args)
    found: dict[str, Any] = {}
    for method in args.method:
        record = read_run(learned(method, model, args))
        held_out = {name: record.evals[f"eval_rewards/{name}/mean"] for name in (*PAID, ANSWERED)}
        panels = [
            Panel(
                "answers that follow from the last calculation",
                held_out[PAID[0]],
                record.train[f"rewards/{PAID[0]}/mean"],
            ),
            Panel("calculations that are right", held_out[PAID[1]], record.train[f"rewards/{PAID[1]}/mean"]),
        ]
        found[method] = {
            "steps": record.steps,
            "seconds": record.seconds,
            "held out": {name: points(series) for name, series in held_out.items()},
            "completion tokens": points(record.evals["eval_completions/mean_length"]),
        }
        first = held_out[PAID[0]]
        spoken = f"{method}: held-out answers follow in {first.first:.1%} before, in {first.last:.1%} after"
        (args.out / f"gsm8k-{method}.svg").write_text(picture(panels, spoken) + "\n", encoding="utf-8")
        (args.out / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        others = [f"{name} {series.first:.1%} and {series.last:.1%}" for name, series in list(held_out.items())[1:]]
        print(spoken, *others, f"{record.steps} steps", sep="; ")


if __name__ == "__main__":
    main()
