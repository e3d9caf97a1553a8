"""Heads of the models that are trained most, and of one of each kind beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Heads:
    """`keys`: heads of keys and values. `width`: of a head of queries and keys, and of values unless those say."""

    queries: int
    keys: int
    width: int
    values: int | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    tokens: int = 410
    backward: bool = True
    dtype: torch.dtype = torch.bfloat16


FAMILIES = {
    "llama 3 8B": Heads(32, 8, 128),
    "llama 3 70B": Heads(64, 8, 128),
    "llama 3.2 1B": Heads(32, 8, 64),
    "mistral 7B": Heads(32, 8, 128, window=4096),
    "qwen 2.5 0.5B": Heads(14, 2, 64),
    "qwen 2.5 7B": Heads(28, 4, 128),
    "qwen 2.5 14B": Heads(40, 8, 128),
    "qwen 3 0.6B": Heads(16, 8, 128),
    "qwen 3 30B-A3B": Heads(32, 4, 128),
    "gemma 2 9B": Heads(16, 8, 256, window=4096, softcap=50.0),
    "gemma 3 4B": Heads(8, 4, 256, window=1024),
    "phi 3 mini": Heads(32, 32, 96),
    "gpt-oss 20B": Heads(64, 8, 64, window=128, sinks=True),
    "smollm 2 360M": Heads(15, 5, 64),
    "deepseek v2 lite": Heads(16, 16, 192, values=128),
}
OTHERS = {
    "four query heads a key head, 33 tokens": Heads(32, 8, 128, tokens=34),
    "without gradient": Heads(32, 8, 128, backward=False),
    "eight query heads a key head, without gradient, 100 tokens": Heads(32, 4, 128, tokens=100, backward=False),
    "float32": Heads(16, 8, 128, dtype=torch.float32),
}
CASES = FAMILIES | OTHERS
