"""The estimate of memory beside what was measured: a few short runs, each in a process of its own.

    python benchmarks/memory_estimate.py --work runs/memory

On examples/arithmetic (run its make.py first), with a model of random weights that is large enough for its memory to be
seen beside that of interpreter and libraries. "measured" is `perf/peak_memory_mb`: on a CPU the peak of the resident
set since the process began, on a GPU what torch had allocated at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "arithmetic"
PAIRS = {"dataset": "preference_train.jsonl", "eval_dataset": "preference_test.jsonl"}
ROLLOUTS = {"reward": [f"{DATA}/rewards.py:right_lines"], "num_generations": 8, "max_completion_length": 128}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT, 8 rows": ("sft", {}),
    "SFT, 64 rows": ("sft", {"per_device_train_batch_size": 64, "gradient_checkpointing": False}),
    "SFT, 64 rows, gradient checkpointing": (
        "sft",
        {"per_device_train_batch_size": 64, "gradient_checkpointing": True},
    ),
    "SFT, 64 rows, 8 times 8": ("sft", {"gradient_accumulation_steps": 8}),
    "SFT, blocks of 256 tokens": ("sft", {"packing": True, "max_length": 256, "per_device_train_batch_size": 16}),
    "SFT, Adafactor": ("sft", {"optim": "adafactor"}),
    "SFT, LoRA": ("sft", {"use_peft": True}),
    "SFT, bfloat16 weights": ("sft", {"dtype": "bfloat16", "per_device_train_batch_size": 4}),
    "DPO, 16 pairs": ("dpo", {"per_device_train_batch_size": 16} | PAIRS),
    "GRPO, 32 completions": ("grpo", {"per_device_train_batch_size": 32} | ROLLOUTS),
}
PARTS = ("base", "weights", "gradients", "optimizer", "companions", "activations", "logits", "generation")


def model_in(folder: Path) -> Path:
    """The example's model and tokenizer, wider, deeper, and with more rows than it has tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(DATA / "model")
    config.hidden_size, config.intermediate_size, config.vocab_size = 384, 1152, 20000
    config.num_hidden_layers, config.layer_types = 8, ["full_attention"] * 8
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 6, 2, 64
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DATA / "model").save_pretrained(folder)
    return folder


def run(name: str, method: str, fields: dict[str, Any], work: Path, steps: int) -> dict[str, float]:
    """What a run was estimated to take, by part, and what it took."""
    folder = work / "".join(letter if letter.isalnum() else "-" for letter in name)
    given = {"dataset": "train.jsonl", "eval_dataset": "test.jsonl"} | fields
    config = {
        "model": str(work / "model"),
        "per_device_train_batch_size": 8,
        "max_steps": steps,
        "eval_max_rows": 16,
        "save_steps": 0,
        "output_dir": str(folder),
        "progress": "quiet",
        **given,
        **{key: str(DATA / "data" / given[key]) for key in ("dataset", "eval_dataset")},
    }
    file = work / f"{folder.name}.json"
    file.write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-m", "ft_host", "train", method, str(file)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    facts = json.loads((folder / "run.json").read_text())["facts"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().split("\n") if line]
    found = {part: facts.get(f"plan/memory_{part}_mb", 0.0) for part in PARTS}
    found["measured"] = max(line["perf/peak_memory_mb"] for line in lines if line["kind"] == "train")
    return found | {"estimate": facts["plan/memory_mb"]}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, for runs and a model")
    parser.add_argument("--steps", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help="default: all")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True)
    model_in(args.work / "model")
    shown = [*PARTS, "estimate", "measured"]
    print(f"| MB | {' | '.join(shown)} | estimate / measured | beside base |")
    print("|---|" + "---:|" * (len(shown) + 2))
    for name in args.only:
        method, fields = CASES[name]
        found = run(name, method, fields, args.work, args.steps)
        beside = (found["estimate"] - found["base"]) / max(1.0, found["measured"] - found["base"])
        cells = [f"{found[each]:.0f}" for each in shown]
        ratio = found["estimate"] / found["measured"]
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {beside:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
