"""The loop of a call of `ft_generate`: prompts enter as places become free, until all their completions have ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ft_host.generation import Sampling
from ft_host.generation.decode import Decoder
from ft_host.generation.jobs import DecodedRow, Job
from ft_host.generation.prompts import next_prompts, prefill, prompts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decode(model: PreTrainedModel, jobs: list[Job], sampling: Sampling, size: int) -> Iterator[DecodedRow]:
    """Complete the jobs, at most `size` at a time; yield rows as they end. Gradients must be off."""
    waiting, size = prompts_of(jobs), min(size, len(jobs))
    decoder = Decoder(model, sampling, size)
    while waiting or decoder.rows:
        # Prefill of one prompt takes about as long as a step of all rows: wait for a few free places.
        if waiting and (not decoder.rows or decoder.free >= max(1, size // 8)):
            while waiting and decoder.free:
                if waiting[0].states is None:
                    prefill(model, next_prompts(waiting, decoder.free))
                decoder.enter(waiting[0])
                if not waiting[0].jobs:
                    waiting.popleft()
                # One look for all prompts that were prefilled together
                if not (decoder.waits and waiting and waiting[0].states is not None and decoder.free):
                    yield from decoder.leave()
        else:
            if not waiting:
                decoder.close()
            decoder.advance()
            yield from decoder.leave()
