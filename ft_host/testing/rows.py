"""Rows of random words for tests, files of them, and a run of a few steps over them. Imports no torch.

    @pytest.fixture
    def make(llama, tmp_path):                      # llama: a folder of ft_host.testing.models.save_tiny
        return partial(tiny_run, MyConfig, llama, tmp_path)

Makers take no seed: what they give is the same in every process and at every call, so that numbers of tests stay.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from ft_host.config import RunConfig
from ft_host.types import Row

Config = TypeVar("Config", bound=RunConfig)

# Most are words of the texts that `tiny_tokenizer` is trained on: a token or a few each.
WORDS = "the quick brown fox jumps over a lazy dog step by small model learns question answer three apples".split()


def sentence(noise: random.Random, most: int) -> str:
    """One to `most` words with spaces between them."""
    return " ".join(noise.choice(WORDS) for _ in range(noise.randint(1, most)))


def rounds(noise: random.Random, count: int, most: int) -> list[Row]:
    """The messages of `count` rounds of a conversation, a user's and an assistant's each, of up to `most` words."""
    return [{"role": role, "content": sentence(noise, most)} for _ in range(count) for role in ("user", "assistant")]


def preference_texts() -> list[Row]:
    """24 pairs of texts: prompt, chosen, rejected. Lengths differ within a pair, either way round."""
    noise = random.Random(0)
    return [pair(noise) for _ in range(24)]


def pair(noise: random.Random) -> Row:
    """A pair of texts; they may be equal."""
    return {
        "prompt": f"{sentence(noise, 8)}?",
        "chosen": f" {sentence(noise, 9)}",
        "rejected": f" {sentence(noise, 9)}",
    }


def preference_chats() -> list[Row]:
    """24 pairs of answers to conversations of one or two rounds, some with a system message."""
    noise = random.Random(1)
    found = []
    for index in range(24):
        prompt = [{"role": "system", "content": sentence(noise, 4)}] if index % 3 == 0 else []
        prompt += rounds(noise, index % 2, 5)
        prompt.append({"role": "user", "content": sentence(noise, 6)})
        answers = {name: [{"role": "assistant", "content": sentence(noise, 8)}] for name in ("chosen", "rejected")}
        found.append({"prompt": prompt, **answers})
    return found


def write_rows(path: Path | str, rows: Iterable[Row]) -> Path:
    """Write rows as JSON lines, over what is there, in a folder that is made if need be. Gives the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_run(
    config_class: type[Config], model: Path | str, folder: Path, rows: Iterable[Row], /, **fields: Any
) -> Config:
    """A config of five steps of four rows, in order, on the CPU, at a learning rate and a clipping that matter.

    The rows are written to `folder/rows.jsonl`; runs belong in `folder/runs`, which is not made. Nothing is saved but
    the end. `fields` are of the method or override any of this, `model` too. Raises what `config_class` raises.
    """
    given = {
        "model": str(model),
        "dataset": str(write_rows(folder / "rows.jsonl", rows)),
        "output_dir": str(folder / "runs"),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "max_steps": 5,
        "learning_rate": 1e-3,
        "save_steps": 0,
        "train_sampling_strategy": "sequential",
        "eval_on_start": False,
        "progress": "quiet",
    }
    return config_class(**(given | fields))
