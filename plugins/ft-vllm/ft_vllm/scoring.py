"""Scores tokens with a teacher that vLLM serves: the likeliest tokens at each position, with their log-probs.

The server is the user's: any `vllm serve` of a model with the student's tokenizer. Requests use vLLM's route for
completions, which generates one token that is discarded, since no route only scores.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft_host.api import ConfigError, FtHostError, Scores, Sequence
from ft_vllm.client import Client

if TYPE_CHECKING:
    from ft_vllm.config import VLLMConfig


@dataclass(frozen=True)
class Teacher:
    """A server that answers, and its model's name. `positions`: the most tokens of a request."""

    client: Client
    model: str
    positions: int


def find(config: VLLMConfig) -> Teacher:
    """Ask the server for its model. Raises ConfigError where it serves none or several."""
    client = Client(config.teacher_url, config.timeout)
    models = client.get("/v1/models")["data"]
    if len(models) != 1:
        names = ", ".join(model["id"] for model in models) or "none"
        raise ConfigError(f"backend_config.teacher_url: {config.teacher_url} serves {names}; expected one model")
    return Teacher(client, models[0]["id"], models[0]["max_model_len"])


def score(teacher: Teacher, sequences: list[Sequence], top: int, at_once: int) -> list[Scores]:
    """Send one request per sequence, `at_once` at a time. Raises FtHostError for a sequence that is too long for the
    teacher.
    """
    if not sequences:
        return []
    with ThreadPoolExecutor(min(at_once, len(sequences)), thread_name_prefix="ft-vllm-teacher") as pool:
        return list(pool.map(lambda sequence: scored(teacher, sequence, top), sequences))


def scored(teacher: Teacher, sequence: Sequence, top: int) -> Scores:
    length = len(sequence.token_ids)
    if length + 1 > teacher.positions:  # the one that is made
        raise FtHostError(
            f"the teacher at {teacher.client.url} has {teacher.positions} positions, and a sequence has {length}"
            f" tokens; lower max_length or max_completion_length, or start it with --max-model-len {length + 1} or more"
        )
    body = {
        "model": teacher.model,
        "prompt": sequence.token_ids,
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": top,
        "add_special_tokens": False,
    }
    places = teacher.client.post("/v1/completions", body)["choices"][0]["prompt_logprobs"]
    if len(places) != length:
        raise FtHostError(f"the teacher at {teacher.client.url} scored {len(places)} tokens of {length}")
    best = [likeliest(place, top) for place in places[sequence.start :]]
    return Scores(
        token_ids=[[token for token, _ in each] for each in best],
        logprobs=[[logp for _, logp in each] for each in best],
    )


def likeliest(place: dict[str, dict[str, Any]], top: int) -> list[tuple[int, float]]:
    """Return tokens and log-probs, likeliest first. The actual token is among them only if it is one of the `top`."""
    ranked = sorted(place.items(), key=lambda item: item[1]["rank"])
    return [(int(token), found["logprob"]) for token, found in ranked if found["rank"] <= top]
