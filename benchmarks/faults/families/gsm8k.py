"""Short rows of gsm8k, with a BPE tokenizer trained on them, Llama. No model of this size solves a problem: what can be
learnt is how solutions are written, and that one ends in `#### NUMBER`. The rows aren't in this repository: FT_GSM8K is
the folder that has sft.jsonl and test_sft.jsonl, with `prompt` and `completion`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import material

from families.base import REWARDS, bases

TUNED = False
RIGHT, NEAR = "@rewards:well_formed", "@rewards:worked"
SHORTER = {"max_steps": 80}  # rows are five times as long as those of the other families
BASE = bases(80, RIGHT, NEAR, show={}, solve={}, dpo={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]})
for _method in ("sdft", "sdpo"):  # nothing that is shown to such a model helps it
    del BASE[_method]
VARIABLE = "FT_GSM8K"
LONGEST = {"prompt": 240, "completion": 160}  # signs
TEST = 64
__all__ = ["BASE", "NEAR", "REWARDS", "RIGHT", "TUNED", "make", "missing"]


def missing() -> str | None:
    folder = os.environ.get(VARIABLE)
    if not folder:
        return f"gsm8k's rows: {VARIABLE} isn't set to the folder that has them"
    lacking = [name for name in ("sft.jsonl", "test_sft.jsonl") if not (Path(folder) / name).is_file()]
    return f"gsm8k's rows: {folder} ({VARIABLE}) has no {' and no '.join(lacking)}" if lacking else None


def rows_of(file: str) -> list[material.Row]:
    rows = material.read_rows(Path(os.environ[VARIABLE]) / file)
    return [
        {
            "prompt": row["prompt"].replace("\n", " ") + "\n",
            "completion": row["completion"],
            "answer": row["completion"].rpartition("#### ")[2],
        }
        for row in rows
        if (row["prompt"] + row["completion"]).isascii()
        and all(len(row[name]) <= longest for name, longest in LONGEST.items())
    ]


def wrong(row: material.Row, rng: random.Random) -> str:
    """The same solution in another form: the answer without its mark, a line twice, or calculations left out."""
    *lines, last = row["completion"].split("\n")
    number = last.removeprefix("#### ")
    slip = rng.randrange(3)
    if slip == 0:
        return "\n".join([*lines, f"The answer is {number}."])
    if slip == 1:
        return "\n".join([*lines, lines[-1], number])
    return "\n".join([*(line.replace("<<", "(").replace(">>", ") ") for line in lines), f"= {number}"])


def make(folder: Path, seed: int, quick: bool = False) -> None:
    def task() -> material.Task:
        from ft_host.testing.models import byte_level

        train, test = rows_of("sft.jsonl"), rows_of("test_sft.jsonl")
        random.Random(seed).shuffle(train)
        random.Random(seed).shuffle(test)
        texts = [row["prompt"] + row["completion"] for row in train]
        letters = [chr(code) for code in range(33, 127)]
        tokenizer = byte_level(texts, 1024, ["<pad>", "<eos>", "<unk>"], letters)
        pieces = byte_level(texts, 640, ["<unk>", "<end>"], letters)
        tokenizer.pad_token, tokenizer.eos_token = "<pad>", "<eos>"
        pieces.pad_token = pieces.eos_token = "<end>"
        return material.Task(
            train=train,
            test=test[:TEST],
            wrong=wrong,
            good_share=0.5,
            tokenizer=tokenizer,
            architecture="llama",
            other="qwen",
            steps={"start": 160, "able": 220, "pieces": 160},
            tuning={"per_device_train_batch_size": 16},
            pieces=pieces,
        )

    material.make(folder, seed, task, quick)
