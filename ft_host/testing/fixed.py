"""The backend of the invariants: completions that depend on the prompt alone, with the policy's log-probs.

Its completions don't change with the weights, so that round-off can't turn a token into another.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ft_host.batch import IGNORE, Segment, by_row, flat_batch
from ft_host.config import RolloutConfig, RunConfig
from ft_host.generation import Completion, Request, Sampling, transformers
from ft_host.hooks import hookimpl
from ft_host.models.aux_models import frozen_eval
from ft_host.run import Run
from ft_host.testing.backends import fixed_completion

NAME = "fixed_completions"
Told = list[tuple[str, str, float]]  # prompt, completion, mean log-prob of its tokens under the policy of that time
listeners: list[Told] = []


@hookimpl
def ft_generate(requests: list[Request], sampling: Sampling, run: Run) -> list[Completion]:
    if sampling.role != "policy" or not requests:
        return transformers.ft_generate(requests, sampling, run)
    end = (sampling.stop_token_ids or [run.tokenizer.eos_token_id])[0]
    segments, found = [], []
    for index, request in enumerate(requests):
        place = index if request.number is None else request.number
        # six places: more than a group of the tests has, and a multiple of the usual sizes of one
        ids = fixed_completion(run.tokenizer.decode(request.prompt_ids), place % 6, end)
        ids = ids[: min(sampling.max_new_tokens, request.max_new_tokens or sampling.max_new_tokens)]
        found.append(ids)
        parent = len(segments)
        prompt = request.prompt_ids
        segments.append(Segment(input_ids=prompt, labels=[IGNORE] * len(prompt), row=index))
        segments.append(Segment(input_ids=ids, labels=ids, row=index, parent=parent))
    batch = flat_batch(segments, num_rows=len(found)).to(run.device)
    with frozen_eval(run.policy):
        logps = run.policy(batch, want=("logp",), temperature=sampling.temperature or 1.0)["logp"]
    decode = partial(run.tokenizer.decode, skip_special_tokens=True)
    for told in listeners:
        told += [
            (decode(request.prompt_ids), decode(ids), float(each.mean()))
            for request, ids, each in zip(requests, found, by_row(logps, batch), strict=True)
        ]
    return [
        Completion(token_ids=ids, logprobs=each.tolist(), finish_reason="stop" if ids[-1] == end else "length")
        for ids, each in zip(found, by_row(logps, batch), strict=True)
    ]


@contextlib.contextmanager
def listening() -> Iterator[Told]:
    """What the backend gives in this process meanwhile, and how likely each completion is to the policy."""
    told: Told = []
    listeners.append(told)
    try:
        yield told
    finally:
        listeners.remove(told)


@contextlib.contextmanager
def fixed_where_sampled(config: RunConfig, folder: Path) -> Iterator[dict[str, str]]:
    """The fields with which a run samples fixed completions: none for one that samples nothing itself, has a backend of
    its own, or talks with tools. The backend is installed in `folder` meanwhile."""
    from ft_host.registry.catalog import catalog
    from ft_host.testing.distributions import make_distribution

    if not isinstance(config, RolloutConfig) or config.backend != "transformers" or config.tools or config.environment:
        yield {}
        return
    site = folder / "site-of-fixed-completions"
    if not site.exists():
        make_distribution(
            site, "ft-fixed-completions", entry_points={"ft_host.backends": {NAME: __name__}}, requires=["ft-host"]
        )
    sys.path.insert(0, str(site))
    catalog.cache_clear()
    try:
        yield {"backend": NAME}
    finally:
        sys.path.remove(str(site))
        catalog.cache_clear()
