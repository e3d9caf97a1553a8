"""A backend with fixed completions, as the source of a module, which other processes can import by name too."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Callable

FixedCompletion = Callable[[str, int], list[int]]

LONGEST = 12  # tokens of a fixed completion
END = 7  # the token that ends one: <|end|> of the tiny tokenizer

_SOURCE = """
import random

import torch
from transformers import AutoModelForCausalLM

from ft_host.api import Completion, Scores, hookimpl

LONGEST, END, GENERATIONS, LOGPROB, TEACHER = {longest}, {end}, {generations}, {logprob}, {teacher!r}
ASKED = []  # who was asked for how much


{function}


@hookimpl
def ft_generate(requests, sampling, run):
    found = []
    ASKED.append((sampling.role, len(requests)))
    for request in requests:
        ids = {name}(run.tokenizer.decode(request.prompt_ids), (request.number or 0) % GENERATIONS)
        why = "stop" if ids[-1] == END else "length"
        found.append(Completion(token_ids=ids, logprobs=[LOGPROB] * len(ids), finish_reason=why))
    return found
"""
_SCORES = """

@hookimpl
def ft_score(sequences, top, run):
    ASKED.append(("score", len(sequences)))
    model, found = AutoModelForCausalLM.from_pretrained(TEACHER), []
    for each in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([each.token_ids])).logits[0, each.start - 1 : -1]
        best = logits.log_softmax(-1).topk(top, -1)
        found.append(Scores(token_ids=best.indices.tolist(), logprobs=best.values.tolist()))
    return found
"""


def fixed_completion(prompt: str, place: int = 0, end: int = END) -> list[int]:
    """The completion of a prompt in a place of its group: anything that depends on its text and that alone. Up to 12
    tokens; every third is cut short, the others end with the token `end`."""
    noise = random.Random(prompt)
    ids: list[int] = []
    for index in range(place + 1):
        size = LONGEST if index % 3 == 2 else noise.randint(1, LONGEST) - 1
        ids = [noise.randrange(8, 200) for _ in range(size)] + [end] * (index % 3 != 2)
    return ids


def fixed_completions(prompt: str, count: int) -> list[list[int]]:
    """The first `count` fixed completions of a prompt."""
    return [fixed_completion(prompt, place) for place in range(count)]


def backend_source(
    completion: FixedCompletion = fixed_completion,
    *,
    generations: int = 1,
    logprob: float = -1.0,
    teacher: str | None = None,
) -> str:
    """The source of a backend that answers request `number` with `completion(prompt, number % generations)`.

    `completion` is taken over as source text: of names from elsewhere it may use random, torch, LONGEST and END. Each
    token gets `logprob`. With `teacher`, the folder of a model, the backend also scores tokens with it.
    """
    source = _SOURCE.format(
        longest=LONGEST,
        end=END,
        generations=generations,
        logprob=logprob,
        teacher=teacher,
        function=textwrap.dedent(inspect.getsource(completion)).strip(),
        name=completion.__name__,
    )
    return source + (_SCORES if teacher else "")
