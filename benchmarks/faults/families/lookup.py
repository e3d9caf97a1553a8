"""A value that is looked up in the text before the question, as conversations: `k=482 m=117 p=903 m?` is `m=117`. A
tokenizer and a chat template of its own, Qwen3 without shared embeddings."""

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
del BASE["gold"]
KEYS = string.ascii_lowercase
ROWS = {"train": 3000, "test": 64}
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
    entries = {key: f"{rng.randrange(1000):03}" for key in rng.sample(KEYS, rng.randrange(3, 6))}
    asked = rng.choice(list(entries))
    listed = " ".join(f"{key}={value}" for key, value in entries.items())
    said = f"{asked}={entries[asked]}"
    return {"prompt": f"{listed} {asked}?", "completion": said, "answer": said}


def wrong(row: material.Row, rng: random.Random) -> str:
    """The value of another key, or a digit that is another."""
    entries = dict(each.split("=") for each in row["prompt"].split()[:-1])
    asked, value = row["completion"].split("=")
    others = [other for key, other in entries.items() if key != asked and other != value]
    if others and rng.random() < 0.5:
        return f"{asked}={rng.choice(others)}"
    at = rng.randrange(3)
    return f"{asked}={value[:at]}{rng.choice([d for d in string.digits if d != value[at]])}{value[at + 1 :]}"


def make(folder: Path, seed: int, quick: bool = False) -> None:
    def task() -> material.Task:
        rng = random.Random(seed)
        rows = {row["prompt"]: row for row in (row_of(rng) for _ in range(2 * sum(ROWS.values())))}
        made = list(rows.values())[: sum(ROWS.values())]
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "<end>"}
        tokenizer = material.sign_tokenizer(string.ascii_letters + string.digits + "=?. ", MARKS, **special)
        tokenizer.chat_template = TEMPLATE
        return material.Task(
            train=made[ROWS["test"] :],
            test=made[: ROWS["test"]],
            wrong=wrong,
            good_share=0.5,
            tokenizer=tokenizer,
            architecture="qwen",
            other="llama",
            steps={"start": 400, "able": 400, "shown": 200},
            showing=showing,
            written=material.as_messages,
        )

    material.make(folder, seed, task, quick)


def showing(row: material.Row, rng: random.Random) -> material.Row:
    """Half of the rows with what is asked for in front: it is there twice."""
    return row if rng.random() < 0.5 else row | {"prompt": f"{row['completion']} {row['prompt']}"}
