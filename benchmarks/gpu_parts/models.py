"""Models of published shapes with random weights, made in seconds rather than minutes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

BLOCK = 16_777_213  # a prime, so that rows of a matrix don't repeat each other


def make_model(folder: Path, fields: dict[str, Any], tokenizer: Any, seed: int = 0) -> None:
    """Save a Qwen3 model of this config in bfloat16, and the tokenizer with it.

    Its matrices are cut from one block of normal numbers, each from another place: eight billion random numbers would
    take minutes.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = Qwen3Config(
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **fields
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    size = min(BLOCK, max(parameter.numel() for parameter in model.parameters()))
    block = torch.randn(size, generator=torch.Generator().manual_seed(seed)).mul_(config.initializer_range)
    block, rng = block.to(torch.bfloat16), random.Random(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # of a norm
                parameter.fill_(1.0)
                continue
            flat, at = parameter.view(-1), rng.randrange(size)
            for start, piece in pieces(flat.numel(), at, size):
                flat[start : start + piece.stop - piece.start] = block[piece]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pieces(count: int, at: int, size: int) -> list[tuple[int, slice]]:
    """Where `count` values go that are read from place `at` of a block of `size` values, over and over: the first
    place of each piece, and the part of the block that it is."""
    found, start = [], 0
    while start < count:
        stop = min(size, at + count - start)
        found.append((start, slice(at, stop)))
        start, at = start + stop - at, 0
    return found
