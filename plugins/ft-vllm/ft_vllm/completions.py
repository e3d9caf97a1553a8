"""Requests completions of prompts from an engine, many at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ft_host.api import Completion, FtHostError
from ft_vllm.sampling import Job, completion_of

if TYPE_CHECKING:
    from ft_vllm.backend import Engine


def ask(engine: Engine, jobs: list[Job], at_once: int) -> list[Completion]:
    """Send one request per completion, `at_once` at a time; vLLM reads a prompt of several completions once."""
    if not jobs:
        return []
    pool = ThreadPoolExecutor(min(at_once, len(jobs)), thread_name_prefix="ft-vllm")
    try:
        return list(pool.map(lambda job: complete(engine, job), jobs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def complete(engine: Engine, job: Job) -> Completion:
    body = {"model": engine.model, "token_ids": job.prompt_ids, "sampling_params": job.params}
    said = engine.client.post("/inference/v1/generate", body)["choices"][0]
    if said["finish_reason"] not in ("stop", "length"):
        raise FtHostError(f"vLLM ended a completion with {said['finish_reason']!r}; expected stop or length")
    logprobs = [entry["logprob"] for entry in said["logprobs"]["content"]]
    spans = [(span["version"], span["start"], span["end"]) for span in said["weight_versions"] or []]
    return completion_of(said["token_ids"], logprobs, said["finish_reason"], spans)
