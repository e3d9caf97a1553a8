"""Values that are looked up in the text before the question, as conversations: to `kPT mQS pRA: p k` the answer is
`pRA kPT`. A tokenizer and a chat template of its own, Qwen3."""

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
    """Three or four keys with two letters each, all different, of which two are asked for."""
    keys = rng.sample(KEYS, rng.randrange(3, 5))
    letters = iter(rng.sample(string.ascii_uppercase, 2 * len(keys)))
    entries = [f"{key}{next(letters)}{next(letters)}" for key in keys]
    asked = rng.sample(entries, 2)
    said = " ".join(asked)
    return {"prompt": f"{' '.join(entries)}: {' '.join(each[0] for each in asked)}", "completion": said, "answer": said}


def wrong(row: material.Row, rng: random.Random) -> str:
    """One of the two has the letters of another key, or a letter that is another, or its letters exchanged."""
    said = row["completion"].split()
    at, slip = rng.randrange(2), rng.randrange(3)
    key, one, two = said[at]
    others = [each[1:] for each in row["prompt"].partition(":")[0].split() if each not in said]
    said[at] = key + (
        rng.choice(others)
        if slip == 0
        else one + rng.choice([each for each in string.ascii_uppercase if each != two])
        if slip == 1
        else two + one
    )
    return " ".join(said)


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
            steps={"start": 900, "able": 500, "shown": 200},
            tuning={"per_device_train_batch_size": 64},
            showing=showing,
            written=material.as_messages,
        )

    material.make(folder, seed, task, quick)


def showing(row: material.Row, rng: random.Random) -> material.Row:
    """Half of the rows with what is asked for in front: it is there twice."""
    return row if rng.random() < 0.5 else row | {"prompt": f"{row['completion']} {row['prompt']}"}
