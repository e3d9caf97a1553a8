"""Completions on the device and on the CPU, with steps one by one and with replayed ones, and what is waited for."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from device import pretended
from ft_host.generation import decode, frames
from ft_host.generation.jobs import Job
from ft_host.generation.loop import decode as completed
from ft_host.generation.static import run_batch
from ft_host.testing.models import FAMILIES
from ft_host.testing.tape import Tapes
from ft_host.types import Sampling

LIMIT = 33  # one token of the prompt, and four times eight
SAMPLING = Sampling(max_new_tokens=LIMIT, seed=0, top_p=0.95, repetition_penalty=1.1)


def rows_of(model: Any, rows: int = 6) -> list[tuple[list[int], list[float]]]:
    jobs = [Job(row, [*range(9, 15 + row % 3), row], row, LIMIT) for row in range(rows)]
    with torch.no_grad():
        done = sorted(completed(model, jobs, SAMPLING, rows), key=lambda row: row.job.index)
    return [(row.tokens, row.logprobs) for row in done]


def by_line(waits: list[Any]) -> Counter[str]:
    return Counter(f"{event.place.file}: {event.place.line}" for event in waits)


def on_both(name: str, graphs: bool) -> dict[str, Any]:
    """Return the rows of the CPU and of the device, the lines that waited there, how often, and the operators that
    Python launched a token."""
    model, tapes = FAMILIES[name](tie_word_embeddings=False).eval(), Tapes()
    cpu = rows_of(model)
    model.to("cuda")
    recorders = {"cuda": lambda: tapes} if graphs else {}
    with mock.patch.dict(frames.RECORDERS, recorders, clear=True), pretended.log() as log:
        device = rows_of(model)
    found = {"cpu": cpu, "cuda": device, "waits": by_line(log.waits)}
    return found | {"replays": tapes.replays, "way": frames.way_of(model)}


def without_graphs() -> tuple[str | None, int]:
    """The device has no graphs, which is found when one is to be captured. Returns what is said of it, and the tokens
    that came."""
    model = FAMILIES["qwen"]().to("cuda").eval()
    assert decode.Decoder(model, SAMPLING, 1).frames is not None
    count = sum(len(tokens) for tokens, _ in rows_of(model))
    return frames.way_of(model), count


def through_generate(name: str) -> dict[str, Any]:
    """The same of a batch that goes through transformers' `generate`, as those of sharded models do."""
    model = FAMILIES[name]().eval()
    jobs = [Job(row, [*range(9, 15 + row % 3), row], row, LIMIT) for row in range(6)]

    def rows_on(device: str) -> list[tuple[list[int], list[float]]]:
        model.to(device)
        run = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), device=torch.device(device))
        with torch.no_grad():
            done = run_batch(jobs, SAMPLING, run, SimpleNamespace(causal_lm=model), sharded=False)
            return [(row.tokens, row.logprobs) for row in done]

    cpu = rows_on("cpu")
    model.to("cuda")
    with pretended.log() as log:
        device = rows_on("cuda")
    return {"cpu": cpu, "cuda": device, "waits": by_line(log.waits)}
