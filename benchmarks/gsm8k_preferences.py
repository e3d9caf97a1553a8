"""DPO, KTO and reward modelling on real rows: one small SFT model, what each makes of it, and the curves as SVGs.

    python benchmarks/gsm8k_preferences.py --data FOLDER --out OUT

FOLDER has sft.jsonl (prompt, completion), preference.jsonl (prompt, chosen, rejected) and unpaired.jsonl (prompt,
completion, label). The questions of the last two are split: what is held out shares no question with what is trained
on. OUT gets the rows, the runs, curves.json and an SVG of each method; runs that it holds already are not made again.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import work
from curves import Panel, picture, points
from kept import finished

import ft_host
from ft_host.rundir.record import RunRecord, read_run
from ft_host.rundir.series import Series

# `kto-per-micro-batch`: KTO with `kl_scope: micro_batch`, as TRL has it, in micro-batches of a quarter of a step. With
# `kl_scope: step` the split changes nothing, so `kto` is what it is compared with.
METHODS = ("dpo", "kto", "reward", "kto-per-micro-batch")
MICRO_BATCHES = 4
SHARED = {
    "max_length": work.MAX_LENGTH,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "adam_beta2": 0.99,
    "per_device_eval_batch_size": 16,
    "logging_steps": 1,
}
SHOWN = ("learning_rate", "max_steps", "per_device_train_batch_size", "beta", "desirable_weight", "lr_scheduler_type")
NO_STEP = 1e-12  # a learning rate at which float32 weights stay what they are


# ---------------------------------------------------------------- rows


def split(data: Path, out: Path, share: float, seed: int) -> dict[str, int]:
    """Write pairs and judged rows for training and held out, by question. Gives counts."""
    files = {"pairs": "preference.jsonl", "judged": "unpaired.jsonl"}
    rows = {kind: [json.loads(line) for line in (data / file).open(encoding="utf-8")] for kind, file in files.items()}
    questions = sorted({row["prompt"] for each in rows.values() for row in each})
    random.Random(seed).shuffle(questions)
    held_out = set(questions[: round(len(questions) * share)])
    counts = {"questions": len(questions), "questions held out": len(held_out)}
    out.mkdir(parents=True, exist_ok=True)
    for kind, each in rows.items():
        each = [row for row in each if kind == "judged" or row["chosen"] != row["rejected"]]
        for part, inside in (("train", False), ("held-out", True)):
            found = [row for row in each if (row["prompt"] in held_out) is inside]
            random.Random(seed).shuffle(found)
            work.write_rows(out / f"{kind}-{part}.jsonl", found)
            counts[f"{kind} {part}"] = len(found)
    return counts


def by_length(pairs: list[work.Row]) -> float:
    """The share of pairs whose chosen text is the longer one; an equal length counts half."""
    sizes = [(len(row["chosen"]), len(row["rejected"])) for row in pairs]
    return sum((a > b) + 0.5 * (a == b) for a, b in sizes) / len(pairs)


# ---------------------------------------------------------------- runs


def tuned(data: Path, out: Path, args: argparse.Namespace) -> Path:
    """The model that all three begin with: from random weights, on worked answers. Gives its folder."""
    from ft_sft.config import SFTConfig

    run = out / "sft"
    if not finished(run):
        rows = work.read_rows(data / "sft.jsonl")
        work.make_model(out / "random", "small", work.make_tokenizer(rows))
        ft_host.train(
            SFTConfig(
                model=str(out / "random"),
                dataset=str(data / "sft.jsonl"),
                output_dir=str(run),
                save_steps=0,
                max_steps=args.sft_steps,
                per_device_train_batch_size=work.BATCH,
                learning_rate=2e-3,  # from scratch: far above what suits a pretrained model
                **SHARED,
            )
        )
    return run / "model"


def balance(judged: Path) -> float:
    """The weight of a good completion with which good ones weigh 7/6 of the bad ones: the middle of what KTO's paper
    advises (1 to 4/3)."""
    labels = [json.loads(line)["label"] for line in judged.open(encoding="utf-8")]
    return 7 / 6 * labels.count(False) / labels.count(True)


def learned(method: str, model: Path, out: Path, args: argparse.Namespace) -> Path:
    """The run of one method. KTO keeps the model of each evaluation: its pairs are compared afterwards."""
    from ft_dpo.config import DPOConfig
    from ft_kto.config import KTOConfig
    from ft_reward.config import RewardConfig

    run = out / method
    if finished(run):
        return run
    base = method.partition("-")[0]
    config = {"dpo": DPOConfig, "kto": KTOConfig, "reward": RewardConfig}[base]
    kind = "judged" if base == "kto" else "pairs"
    rows, held_out = (out / "rows" / f"{kind}-{part}.jsonl" for part in ("train", "held-out"))
    steps, rate = {
        "dpo": (args.dpo_steps, args.dpo_lr),
        "kto": (args.kto_steps, args.kto_lr),
        "reward": (args.reward_steps, args.reward_lr),
    }[base]
    every = max(1, steps // args.evaluations)
    own = {"save_steps": 0, "per_device_train_batch_size": args.batch}
    if base == "kto":
        own |= {
            "save_steps": every,
            "save_total_limit": None,
            "desirable_weight": balance(rows),
            "eval_max_rows": 300,  # each costs two passes: its own and that of the KL estimate
        }
    if method == "kto-per-micro-batch":
        own |= {
            "kl_scope": "micro_batch",
            "per_device_train_batch_size": args.batch // MICRO_BATCHES,
            "gradient_accumulation_steps": MICRO_BATCHES,
        }
    ft_host.train(
        config(
            model=str(model),
            dataset=str(rows),
            eval_dataset=str(held_out),
            output_dir=str(run),
            max_steps=steps,
            learning_rate=rate,
            eval_steps=every,
            **own,
            **SHARED,
        )
    )
    return run


def pair_accuracy(model: Path, reference: Path | None, out: Path, name: str) -> float:
    """The share of held-out pairs whose chosen completion has the higher log-prob, beside the reference's, under the
    model: what DPO calls its accuracy. It is read off a DPO run whose only step changes nothing."""
    from ft_dpo.config import DPOConfig

    run, held_out = out / "compared" / name, str(out / "rows" / "pairs-held-out.jsonl")
    if not finished(run):
        with_reference = {"ref_model": str(reference)} if reference else {"reference_free": True}
        ft_host.train(
            DPOConfig(
                model=str(model),
                dataset=held_out,
                eval_dataset=held_out,
                output_dir=str(run),
                max_steps=1,
                per_device_train_batch_size=1,
                eval_on_start=False,
                save_steps=0,
                progress="quiet",
                **with_reference,
                **(SHARED | {"learning_rate": NO_STEP, "warmup_steps": 0}),
            )
        )
    return read_run(run).evals["eval_rewards/accuracies"].last


# ---------------------------------------------------------------- curves


def from_step(series: Series, first: int) -> Series:
    found = Series()
    for step, value in zip(series.steps, series.values, strict=True):
        if step >= first:
            found.put(step, value)
    return found


def kto_pairs(record: RunRecord, model: Path, out: Path) -> Series:
    """Pair accuracy of the models that a KTO run kept."""
    found = Series()
    for step in record.checkpoints:
        kept = record.folder / "checkpoints" / f"step-{step}" / "model"
        found.put(step, pair_accuracy(kept, model, out, f"{record.folder.name}-{step}"))
    return found


def panels_of(method: str, record: RunRecord, pairs: Series | None) -> list[Panel]:
    train, evals = record.train, record.evals
    chance = {"level": 0.5, "level_name": "chance", "steps_shown": False}
    loss = Panel("loss", evals["eval_loss"], train["loss"])
    if method == "reward":
        return [loss, Panel("pairs in the right order", evals["eval_accuracy"], train["accuracy"], **chance)]
    if method == "dpo":
        # before the first update policy and reference are the same, and no reward is the higher one
        held_out, trained = from_step(evals["eval_rewards/accuracies"], 1), from_step(train["rewards/accuracies"], 2)
        return [loss, Panel("pairs in the right order", held_out, trained, **chance)]
    return [
        loss,
        Panel("reward margin", evals["eval_rewards/margins"]),
        Panel("pairs in the right order", pairs, **chance),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gsm8k-preferences"), help="default: %(default)s")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS[:3]))
    parser.add_argument("--held-out", type=float, default=0.15, help="share of the questions (default: %(default)s)")
    parser.add_argument(
        "--evaluations", type=int, default=4, help="of a run, beside the one before (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pairs or rows of a step (default: %(default)s)")
    parser.add_argument("--sft-steps", type=int, default=934, help="one pass over 7,473 rows (default: %(default)s)")
    for method, steps, rate in (("dpo", 160, 3e-5), ("kto", 160, 1e-4), ("reward", 160, 2e-4)):
        parser.add_argument(f"--{method}-steps", type=int, default=steps, help="default: %(default)s")
        parser.add_argument(f"--{method}-lr", type=float, default=rate, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    args = parser.parse_args()

    counts = split(args.data, args.out / "rows", args.held_out, args.seed)
    model = tuned(args.data, args.out, args)
    pairs = work.read_rows(args.out / "rows" / "pairs-held-out.jsonl", ("prompt", "chosen", "rejected"))
    found: dict[str, Any] = {
        "rows": counts,
        "held-out pairs in the right order": {
            "the longer one": by_length(pairs),
            "the likelier one under the SFT model": pair_accuracy(model, None, args.out, "sft"),
        },
        "curves": {},
    }
    for method in args.method:
        record = read_run(learned(method, model, args.out, args))
        compared = kto_pairs(record, model, args.out) if method.startswith("kto") else None
        panels = panels_of(method, record, compared)
        last = panels[-1].held_out
        found["held-out pairs in the right order"][method] = last.last
        found["curves"][method] = {
            "settings": {name: record.config[name] for name in SHOWN if name in record.config},
            "train": {name: points(series) for name, series in record.train.items()},
            "held out": {name: points(series) for name, series in record.evals.items()},
            "pairs in the right order": points(last),
        }
        spoken = f"{method}: {last.last:.0%} of held-out pairs in the right order after {record.steps} steps"
        (args.out / f"gsm8k-{method}.svg").write_text(picture(panels, spoken) + "\n", encoding="utf-8")
        (args.out / "curves.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for what, share in found["held-out pairs in the right order"].items():
        print(f"{what}: {share:.3f}")


if __name__ == "__main__":
    main()
