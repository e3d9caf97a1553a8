"""Letters that are to be written as capitals, in order or backwards: `>bca` is `BCA`, `<bca` is `ACB`. A tokenizer of
its own, one token a sign, Llama."""

from __future__ import annotations

import random
import string
from pathlib import Path

import material

from families.base import REWARDS, bases

TUNED = True
RIGHT, NEAR = "@rewards:exact", "@rewards:near"
BASE = bases(12, RIGHT, NEAR, show={}, solve={}, dpo={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]})
LETTERS = "abcdefghijklmnopqrst"
LENGTHS = range(4, 9)
ROWS = {"train": 3000, "test": 64}
for _method in ("gold", "sdft", "sdpo"):  # letters in no order have no pieces, and a solution isn't read off so soon
    del BASE[_method]
__all__ = ["BASE", "NEAR", "REWARDS", "RIGHT", "TUNED", "make", "missing"]


def missing() -> str | None:
    return None


def row_of(sign: str, letters: str) -> material.Row:
    said = (letters if sign == ">" else letters[::-1]).upper()
    return {"prompt": f"{sign}{letters}\n", "completion": said, "answer": said}


def make_rows(seed: int) -> tuple[list[material.Row], list[material.Row]]:
    """Rows to train on and to test on, all different; no letter is in a row twice."""
    rng = random.Random(seed)
    rows: dict[tuple[str, str], None] = {}
    while len(rows) < sum(ROWS.values()):
        rows[rng.choice("<>"), "".join(rng.sample(LETTERS, rng.choice(LENGTHS)))] = None
    made = [row_of(*each) for each in rows]
    return made[ROWS["test"] :], made[: ROWS["test"]]


def wrong(row: material.Row, rng: random.Random) -> str:
    """Two letters that stand beside each other are exchanged, one is another, or one is left out."""
    text = row["completion"]
    at = rng.randrange(len(text) - 1)
    slip = rng.randrange(3)
    if slip == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + rng.choice([each for each in LETTERS.upper() if each not in text]) * (slip == 1) + text[at + 1 :]


def make(folder: Path, seed: int, quick: bool = False) -> None:
    def task() -> material.Task:
        train, test = make_rows(seed)
        signs = "".join(sign for sign in string.printable if sign.isprintable()) + "\n"
        special = {"pad_token": "<pad>", "eos_token": "<eos>"}
        return material.Task(
            train=train,
            test=test,
            wrong=wrong,
            good_share=0.5,
            tokenizer=material.sign_tokenizer(signs, ["<pad>", "<eos>", "<unk>"], **special),
            architecture="llama",
            other="gpt2",
            steps={"start": 640, "able": 300},
        )

    material.make(folder, seed, task, quick)
