"""Sums worked out digit by digit: the rows of examples/arithmetic, with numbers of two and three digits. One token a
sign, Qwen3."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from typing import Any

import material

from families.base import REWARDS, bases

TUNED = True
RIGHT, NEAR = "@rewards:exact", "@rewards:near"
CHAT = {"model": "@model/chat", "dataset": "@data/chat_train", "eval_dataset": "@data/chat_test"}
BASE = bases(
    32,
    RIGHT,
    NEAR,
    show={"teacher_prompt_template": "{prompt}{privileged_context}\n{prompt}"},
    solve={"reprompt_template": "{prompt}{solution}{prompt}", "solution_template": "{successful_previous_attempt}\n"},
    # With sft, the right way also grows likelier, not only likelier than the wrong one.
    dpo={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]},
    kto={"desirable_weight": 3.0},
)
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "arithmetic" / "make.py"
ROWS = {"digits": 3, "train_rows": 3000, "test_rows": 64}
__all__ = ["BASE", "CHAT", "NEAR", "REWARDS", "RIGHT", "TUNED", "make", "missing"]


def missing() -> str | None:
    return None


def example() -> Any:
    """make.py of the example."""
    spec = importlib.util.spec_from_file_location("arithmetic_make", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(folder: Path, seed: int, quick: bool = False) -> None:
    def task() -> material.Task:
        maker = example()
        train, test = maker.make_rows(Namespace(seed=seed, **ROWS))
        texts = [row["prompt"] + row["completion"] for row in train]
        save_chat_model(folder / "model" / "chat", seed)
        return material.Task(
            train=train,
            test=test,
            wrong=lambda row, rng: maker.pair_of(row, rng)["rejected"],
            good_share=0.25,
            tokenizer=maker.make_tokenizer(texts),
            architecture="qwen",
            other="llama",
            steps={"start": 380, "able": 450, "shown": 250, "pieces": 450},
            showing=lambda row, rng: maker.show_any_digits(row, rng) if rng.random() < 0.5 else row,
            pieces=maker.make_pieces_tokenizer(texts, 32),
        )

    material.make(folder, seed, task, quick)


def save_chat_model(folder: Path, seed: int) -> None:
    """A model with random weights whose tokenizer has a chat template."""
    from ft_host.testing.models import save_tiny, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    save_tiny(folder, material.small("qwen", tokenizer, seed, {}), tokenizer)
