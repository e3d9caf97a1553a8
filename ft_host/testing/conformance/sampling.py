"""A run that samples with the backend of a package, and what the tokens that it samples ought to cost."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft_host.testing.conformance.check import DoesNotApply, Figures
from ft_host.types import Completion, Request, Sampling

if TYPE_CHECKING:
    import torch

    from ft_host.run import Run
    from ft_host.testing.conformance.subject import Subject

ABS = 1e-3  # of a log-prob: engines add up in another order than a forward does


def of_run(test: Callable[[Run], Figures | None]) -> Callable[[Subject], Figures | None]:
    """A check of a run that samples."""

    def asks(subject: Subject) -> Figures | None:
        with sampling_run(subject) as run:
            return test(run)

    return asks


@contextlib.contextmanager
def sampling_run(subject: Subject) -> Iterator[Run]:
    """A run whose backend has the weights of a tiny model, and which is closed at the end. Raises DoesNotApply where
    a module that the package says it needs isn't installed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ft_host.registry import load
    from ft_host.registry.backend import settings_of
    from ft_host.rundir.folder import RunFolder
    from ft_host.testing.generation import generating_run

    for module, reason in subject.declared.needs.items():
        if importlib.util.find_spec(module) is None:
            raise DoesNotApply(f"{module} isn't installed here: {reason}")
    place = subject.materials["sampler"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    run = generating_run(model, tokenizer, backend=load(subject.plugin), progress="quiet")
    run.config.model, run.config.backend = place, subject.plugin.name
    run.folder = RunFolder(subject.folder)
    run.backend_config = settings_of(subject.plugin, subject.declared.config.get(subject.plugin.name, {}))
    if run.backend_config is not None:
        run.backend_config.check()
    try:
        run.sync_weights()
        yield run
    finally:
        run.plugins.hook.ft_close(run=run)


def prompt(number: int, size: int = 0) -> list[int]:
    """Token ids: the same for a number, of 3 to 9 tokens where no size is given."""
    noise = random.Random(number)
    return [noise.randrange(8, 200) for _ in range(size or noise.randint(3, 9))]


def requests(count: int, **fields: Any) -> list[Request]:
    """Requests numbered from 0, each with a prompt of its own."""
    return [Request(prompt_ids=prompt(number), number=number, **fields) for number in range(count)]


def asked(run: Run, wanted: list[Request], **fields: Any) -> list[Completion]:
    """What the backend samples for them: up to 8 tokens each, with the seed 3, where nothing else is said."""
    return run.generate(wanted, Sampling(**({"max_new_tokens": 8, "seed": 3, "stop_token_ids": []} | fields)))


def log_probs(run: Run, prompt_ids: list[int], token_ids: list[int], **fields: Any) -> torch.Tensor:
    """The log-probs (n, V) from which the n tokens of a completion are drawn: a forward of the run's policy, and then
    repetition penalty, temperature, top_k, top_p and min_p, in this order. Cut tokens have -inf."""
    import torch

    policy = run.policy.causal_lm
    training = policy.training
    policy.eval()
    with torch.no_grad():
        ids = torch.tensor([prompt_ids + token_ids], device=policy.device)
        logits = policy(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float()
    policy.train(training)
    sampling = Sampling(max_new_tokens=8, **fields)
    seen = [sorted({*prompt_ids, *token_ids[:at]}) for at in range(len(token_ids))]
    return torch.stack([_drawn_from(each, seen[at], sampling) for at, each in enumerate(logits)])


def _drawn_from(logits: torch.Tensor, seen: list[int], sampling: Sampling) -> torch.Tensor:
    """(V,) logits to (V,) log-probs."""
    import torch

    logits = logits.clone()
    penalised = logits[seen]
    penalty = sampling.repetition_penalty
    logits[seen] = torch.where(penalised < 0, penalised * penalty, penalised / penalty)
    logp = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.top_k:
        logp = _kept(logp, logp >= logp.topk(sampling.top_k).values[-1])
    if sampling.top_p < 1:
        order = logp.argsort(descending=True)
        mass = logp[order].exp()
        kept = torch.zeros_like(logp, dtype=torch.bool)
        kept[order[mass.cumsum(-1) - mass < sampling.top_p]] = True
        logp = _kept(logp, kept)
    if sampling.min_p:
        logp = _kept(logp, logp >= logp.max() + math.log(sampling.min_p))
    return logp


def _kept(logp: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return logp.masked_fill(~which, -math.inf).log_softmax(-1)


def tokens(found: list[Completion]) -> list[list[int]]:
    return [each.token_ids for each in found]


def furthest(run: Run, wanted: list[Request], found: list[Completion], **fields: Any) -> tuple[float, str]:
    """The largest difference between a log-prob that the backend gave and the one that the token was drawn with, and
    where it is."""
    worst, where = 0.0, ""
    for request, completion in zip(wanted, found, strict=True):
        ids, given = completion.token_ids, completion.logprobs
        if len(given) != len(ids):
            return math.inf, f"request {request.number} has {len(ids)} tokens and {len(given)} log-probs"
        expected = log_probs(run, request.prompt_ids, ids, **fields)
        for at, (token, logprob) in enumerate(zip(ids, given, strict=True)):
            true = float(expected[at, token])
            apart = abs(true - logprob)
            if not apart <= worst:
                worst = apart
                where = f"token {at} of request {request.number} has {logprob:.5g}, and is drawn with {true:.5g}"
    return worst, where
