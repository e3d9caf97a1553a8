"""SFT on real rows: a small model from scratch, 200 steps on gsm8k, and its curves as an SVG.

    python benchmarks/gsm8k.py TRAIN.jsonl TEST.jsonl --run RUN --svg curve.svg

Both files have text in `prompt` and `completion` on each line. RUN is the folder of the new run; where it holds one
already, its curves are drawn again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import work
from curves import Panel, picture

from ft_host.rundir.record import RunRecord, read_run


def train(rows: Path, test: Path, run: Path) -> None:
    from ft_sft.config import SFTConfig

    import ft_host

    tokenizer = work.make_tokenizer(work.read_rows(rows))
    with tempfile.TemporaryDirectory() as model:
        work.make_model(Path(model), "small", tokenizer)
        ft_host.train(
            SFTConfig(
                model=model,
                dataset=str(rows),
                eval_dataset=str(test),
                output_dir=str(run),
                max_length=work.MAX_LENGTH,
                per_device_train_batch_size=work.BATCH,
                max_steps=200,
                learning_rate=2e-3,  # from scratch: far above what suits a pretrained model
                lr_scheduler_type="cosine",
                warmup_steps=20,
                adam_beta2=0.99,
                eval_steps=25,
                eval_max_rows=200,
                save_steps=0,
            )
        )


def drawn(record: RunRecord) -> str:
    """An SVG document with loss and token accuracy of a run."""
    panels = [
        Panel("loss", record.evals["eval_loss"], record.train["loss"]),
        Panel("token accuracy", record.evals["eval_mean_token_accuracy"], record.train["mean_token_accuracy"]),
    ]
    last = record.evals["eval_loss"]
    return picture(
        panels, f"Loss on held-out rows: {last.first:.2f} before training, {last.last:.2f} after {record.steps} steps"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/gsm8k"), help="default: %(default)s")
    parser.add_argument("--svg", type=Path, default=Path("gsm8k-sft.svg"), help="default: %(default)s")
    args = parser.parse_args()
    if not (args.run / "run.json").exists():
        train(args.train, args.test, args.run)
    args.svg.write_text(drawn(read_run(args.run)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
