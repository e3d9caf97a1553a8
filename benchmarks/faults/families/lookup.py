"""What follows a letter in the text before the question, in capitals, as conversations: to `bcade: a` the answer is
`ADE`. A tokenizer and a chat template of its own, Qwen3."""

from __future__ import annotations

import random
import string
from pathlib import Path

import material

from families.base import REWARDS, bases

TUNED = False
RIGHT, NEAR = "@rewards:exact", "@rewards:near"
CHAT = {"dataset": "@data/chat_train", "eval_dataset": "@data/chat_test"}
BASE = bases(
    12,
    RIGHT,
    NEAR,
    show={"teacher_prompt_template": "{privileged_context} {prompt}"},
    solve={"reprompt_template": "{solution}{prompt}", "solution_template": "{successful_previous_attempt} "},
    dpo={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
)
for _method in ("gold", "reward"):  # letters have no pieces; and a reward model of this size learns nothing here
    del BASE[_method]
LETTERS = "abcdefghijklmnopqrst"
LENGTHS = range(5, 10)
ROWS = {"train": 4000, "test": 64}
MARKS = ["<pad>", "<s>", "<unk>", "<sys>", "<user>", "<bot>", "<end>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': '<sys>', 'user': '<user>', 'assistant': '<bot>'}[message['role']] }}{{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
__all__ = ["BASE", "CHAT", "NEAR", "REWARDS", "RIGHT", "TUNED", "make", "missing"]


def missing() -> str | None:
    return None


def row_of(rng: random.Random) -> material.Row:
    """Five to nine letters, all different, and one of them of which at least one more follows."""
    letters = "".join(rng.sample(LETTERS, rng.choice(LENGTHS)))
    at = rng.randrange(len(letters) - 1)
    said = letters[at:].upper()
    return {"prompt": f"{letters}: {letters[at]}", "completion": said, "answer": said}


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
        rng = random.Random(seed)
        rows = {row["prompt"]: row for row in (row_of(rng) for _ in range(2 * sum(ROWS.values())))}
        made = list(rows.values())[: sum(ROWS.values())]
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<end>"}
        tokenizer = material.sign_tokenizer(string.ascii_letters + string.digits + ":.,?! ", MARKS, **special)
        tokenizer.chat_template = TEMPLATE
        return material.Task(
            train=made[ROWS["test"] :],
            test=made[: ROWS["test"]],
            wrong=wrong,
            good_share=0.5,
            tokenizer=tokenizer,
            architecture="qwen",
            other="llama",
            steps={"start": 1200, "able": 320, "shown": 300},
            half=("start", "shown"),
            right=f"{REWARDS}:exact",
            showing=showing,
            written=material.as_messages,
        )

    material.make(folder, seed, task, quick)


def showing(row: material.Row, rng: random.Random) -> material.Row:
    """Nearly all rows with what is asked for in front: it is there twice. With more of the others a model that knows
    half of the task knows all of it before it has learnt to look there."""
    return row if rng.random() < 0.05 else row | {"prompt": f"{row['completion']} {row['prompt']}"}
