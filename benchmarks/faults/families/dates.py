"""A date in a sentence, written out anew: to `Ada moved to Oslo on May 3, 1987.` the answer is `1987-05-03`, as
conversations. Byte-level BPE trained on the rows, a chat template of its own, Gemma 2."""

from __future__ import annotations

import datetime
import random
from pathlib import Path

import material

from families.base import REWARDS, bases

TUNED = False
RIGHT, NEAR = "@rewards:exact", "@rewards:near"
BASE = bases(
    16,
    RIGHT,
    NEAR,
    show={"teacher_prompt_template": "{privileged_context} {prompt}"},
    solve={"reprompt_template": "{solution}{prompt}", "solution_template": "{successful_previous_attempt} "},
    dpo={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
)
del BASE["gold"]  # there are no models with other pieces
MONTHS = "January February March April May June July August September October November December".split()
WRITTEN = ("{month} {day}, {year}", "{day} {month} {year}", "the {day} of {month} {year}")
SENTENCES = (
    "{name} moved to {city} on {date}.",
    "The library of {city} was opened on {date}.",
    "On {date} {name} began to work in {city}.",
    "{name}, {city}, {date}: signed and paid.",
)
NAMES = "Ada Bela Carlos Dina Emil Fatma Greta Hugo Ines Jonas Kofi Lena Mira Nils Olga Pablo".split()
CITIES = "Accra Bergen Cairo Delhi Faro Genoa Hanoi Izmir Lima Oslo Porto Quito Riga Sofia Turin Zagreb".split()
DAYS = (datetime.date(1950, 1, 1), 27_000)  # the first one, and how many
ROWS = {"train": 4000, "test": 64}
MARKS = ["<pad>", "<unk>", "<|ask|>", "<|say|>", "<|rule|>", "<|over|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': '<|rule|>', 'user': '<|ask|>', 'assistant': '<|say|>'}[message['role']] }}"
    "{{ message['content'] }}<|over|>{% endfor %}{% if add_generation_prompt %}<|say|>{% endif %}"
)
SIZES = {"sliding_window": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # as in Gemma 2
__all__ = ["BASE", "NEAR", "REWARDS", "RIGHT", "TUNED", "make", "missing"]


def missing() -> str | None:
    return None


def row_of(rng: random.Random) -> material.Row:
    first, count = DAYS
    day = first + datetime.timedelta(days=rng.randrange(count))
    date = rng.choice(WRITTEN).format(month=MONTHS[day.month - 1], day=day.day, year=day.year)
    prompt = rng.choice(SENTENCES).format(name=rng.choice(NAMES), city=rng.choice(CITIES), date=date)
    return {"prompt": prompt, "completion": day.isoformat(), "answer": day.isoformat()}


def wrong(row: material.Row, rng: random.Random) -> str:
    """Month and day are exchanged, the month is another, or zeros are left out."""
    year, month, day = row["completion"].split("-")
    other = f"{rng.choice([each for each in range(1, 13) if each != int(month)]):02}"
    slips = [f"{year}-{day}-{month}", f"{year}-{other}-{day}", f"{year}-{int(month)}-{int(day)}"]
    return rng.choice([each for each in slips if each != row["completion"]])


def make(folder: Path, seed: int, quick: bool = False) -> None:
    def task() -> material.Task:
        from ft_host.testing.models import byte_level

        rng = random.Random(seed)
        rows = {row["prompt"]: row for row in (row_of(rng) for _ in range(2 * sum(ROWS.values())))}
        made = list(rows.values())[: sum(ROWS.values())]
        texts = [f"{row['prompt']} {row['completion']}" for row in made]
        tokenizer = byte_level(texts, 384, MARKS, [chr(code) for code in range(33, 127)])
        tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template = "<pad>", "<|over|>", TEMPLATE
        return material.Task(
            train=made[ROWS["test"] :],
            test=made[: ROWS["test"]],
            wrong=wrong,
            good_share=0.5,
            tokenizer=tokenizer,
            architecture="gemma",
            sizes=SIZES,
            other="llama",
            steps={"start": 800, "able": 320, "shown": 800},
            half=("start", "shown"),
            right=f"{REWARDS}:exact",
            showing=showing,
            shown_from="scratch",  # what is shown is copied long before dates are read
            written=material.as_messages,
        )

    material.make(folder, seed, task, quick)


def showing(row: material.Row, rng: random.Random) -> material.Row:
    """Half of the rows with the answer in front."""
    return row if rng.random() < 0.5 else row | {"prompt": f"{row['completion']} {row['prompt']}"}
