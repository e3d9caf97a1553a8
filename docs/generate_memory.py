"""Writes the table of docs/memory.md, which models fit which cards: python docs/generate_memory.py"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft_host.config import RunConfig
from ft_host.config.memory_plan import CARDS, Fit, fit, memory_plan, room_mb, settings
from ft_host.util.memory import peak_mb
from ft_host.util.model_sizes import counts_of

PAGE = Path(__file__).resolve().parent / "memory.md"
BEGIN, END = "<!-- Written by docs/generate_memory.py; change it there. -->", "<!-- Until here. -->"
ON = (80, 141)  # gigabytes
MOST = 32  # cards

QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
LLAMA3 = {"model_type": "llama", "vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8}


def sizes(hidden: int, layers: int, heads: int, wide: int, tied: bool = False) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": wide,
        "tie_word_embeddings": tied,
    }


# As in their config.json
MODELS: dict[str, Mapping[str, Any]] = {
    "Qwen3-0.6B": QWEN3 | sizes(1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": QWEN3 | sizes(2048, 28, 16, 6144, tied=True),
    "Qwen3-8B": QWEN3 | sizes(4096, 36, 32, 12288),
    "Qwen3-32B": QWEN3 | sizes(5120, 64, 64, 25600),
    "Llama-3.3-70B": LLAMA3 | sizes(8192, 80, 64, 28672),
}
HOW: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA": {"use_peft": True},
    "QLoRA": {"use_peft": True, "load_in_4bit": True},
}


def gib(megabytes: float) -> str:
    return f"{megabytes / 1024:.0f}"


def on_one(found: Fit | None) -> str:
    if found is None:
        return "no"
    return f"{gib(found.megabytes)} GiB: {settings(found.changes) or 'as it is'}"


def on_several(fields: Mapping[str, Any], config: RunConfig, card: int) -> str:
    if config.load_in_4bit:
        return "—"
    found = fit(fields, config, card, most_cards=MOST)
    if found is None:
        return f"no, on {MOST}"
    rows = ", 1 row" if "per_device_train_batch_size" in found.changes else ""
    return f"{found.changes.get('num_processes', 1)}, {gib(found.megabytes)} GiB each{rows}"


def table() -> str:
    cards = [
        *(f"one card of {card} GB, with" for card in ON),
        *(f"cards of {card} GB that float32 takes" for card in ON),
    ]
    lines = [f"| model | trained | as it is | {' | '.join(cards)} |", "|---" * (3 + len(cards)) + "|"]
    for name, fields in MODELS.items():
        for how, given in HOW.items():
            config = RunConfig(model=name, **given)
            parts = memory_plan(fields, config)
            assert parts is not None, f"{name} can be counted"
            cells = [f"{gib(peak_mb(parts))} GiB", *(on_one(fit(fields, config, card)) for card in ON)]
            cells += [on_several(fields, config, card) for card in ON]
            lines.append(f"| {name} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counted() -> str:
    found = {name: counts_of(fields) for name, fields in MODELS.items()}
    return ", ".join(f"{name} {counts.all / 1e9:.2f}" for name, counts in found.items() if counts is not None)


def generate() -> str:
    """The text of docs/memory.md: what is written by hand, with the table between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    rooms = " and ".join(f"{gib(room_mb(card))} GiB of {gib(CARDS[card])} that a card of {card} GB has" for card in ON)
    text = f"Counted on: {rooms}. Weights, in billions: {counted()}."
    return f"{before}{BEGIN}\n\n{table()}\n\n{text}\n\n{END}{after}"


def main() -> int:
    PAGE.write_text(generate(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
