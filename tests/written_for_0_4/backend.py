"""A backend of fixed completions, written against ft-host 0.4.0 and its docs: request n is answered by n % 4 tokens and
an end."""

from __future__ import annotations

from ft_host import hookimpl
from ft_host.generation import Completion


@hookimpl
def ft_generate(requests, sampling, run):
    found = []
    for request in requests:
        size = (request.number or 0) % 4
        ids = [20 + size, 30, 40][:size] + [run.tokenizer.eos_token_id]
        found.append(Completion(token_ids=ids, logprobs=[-1.0] * len(ids), finish_reason="stop"))
    return found
